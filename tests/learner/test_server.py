"""The server as its half of a strategy sees it: cohorts, models, averages, public samples."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedkd import seeding
from fedkd.config import DataSettings, Experiment
from fedkd.data.federation import Federation, Holding, Splits
from fedkd.data.sources import DataSet
from fedkd.knowledge import Weights
from fedkd.learner.base import ClientCard
from fedkd.learner.fit import answer
from fedkd.learner.model import fresh
from fedkd.learner.server import Reply, Server
from fedkd.task import Classification

PUBLIC = torch.tensor([1, 3, 5, 8, 9])
CARDS = {
    card.key: card
    for card in (
        ClientCard("client-0", "mlp", "plus", 1),
        ClientCard("client-1", "linear", "plus", 2),
        ClientCard("client-2", "mlp", "plus", 3),
        ClientCard("client-3", "linear", "minus", 4),
        ClientCard("client-4", "linear", "plus", 6),
    )
}

DEFAULTS = DataSettings()


def federation(data: DataSettings = DEFAULTS) -> Federation:
    """Ten samples in two views; the number in a view is the sample's id, negative in the second view."""
    numbers = torch.arange(10.0)
    views = {"plus": numbers[:, None].repeat(1, 3), "minus": -numbers[:, None].repeat(1, 2)}
    dataset = DataSet("ten", views, torch.arange(10) % 4, ("a", "b", "c", "d"))
    splits = Splits(torch.tensor([2, 4, 6, 7]), PUBLIC, torch.empty(0, dtype=torch.int64), torch.tensor([0]))
    none = torch.empty(0, dtype=torch.int64)
    holdings = {
        "client-0": Holding("client-0", "mlp", "plus", torch.tensor([6, 7]), none, {}, torch.tensor([6, 7])),
        "client-1": Holding("client-1", "linear", "plus", torch.tensor([4]), torch.tensor([2]), {}, torch.tensor([4])),
    }
    return Federation(Experiment(data=data), dataset, splits, holdings)


def server(parties: Federation | None = None, round_: int = 1, seed: int = 3) -> Server:
    parties = parties or federation()
    return Server(
        models={}, state={}, round=round_, seed=seed, train=parties.experiment.train, ask=answer, clients=CARDS,
        federation=parties,
    )  # fmt: skip


def started(architecture_of: Callable[[ClientCard], str | None] = lambda client: client.architecture) -> Server:
    one = server()
    one.start_students(architecture_of)
    return one


def test_there_is_one_student_for_each_architecture_and_view_from_seeds_of_their_own() -> None:
    one = started()
    assert one.students == {"linear+minus": "minus", "linear+plus": "plus", "mlp+plus": "plus"}
    assert list(one.models) == sorted(one.models) == list(one.students)
    assert {key: one.student_of(card) for key, card in CARDS.items()} == {
        key: f"{card.architecture}+{card.view}" for key, card in CARDS.items()
    }
    for name, view in one.students.items():
        spec = federation().model_spec(name.partition("+")[0], view)
        expected = fresh(spec, seeding.derive_seed(3, "model", name), torch.empty(0))
        assert one.models[name].spec == spec
        assert all(torch.equal(t, expected.tensors[key]) for key, t in one.models[name].tensors.items())
    first, other = one.models["linear+plus"].tensors["head.weight"], one.models["linear+minus"].tensors["head.weight"]
    assert not torch.equal(first, other)


def test_who_has_no_student_gets_none() -> None:
    one = started(lambda client: None if client.view == "minus" else "mlp")
    assert one.students == {"mlp+plus": "plus"}
    assert "client-3" not in one.student_names


def replies(values: dict[str, float], one: Server) -> list[Reply[Weights]]:
    """Weights that are one number everywhere."""

    def constant(key: str, value: float) -> Weights:
        tensors = one.models[one.student_of(CARDS[key])].tensors
        return Weights({name: torch.full_like(t, value) for name, t in tensors.items()})

    return [Reply(CARDS[key], constant(key, value)) for key, value in values.items()]


def value_of(one: Server, name: str) -> float:
    values = {float(x) for t in one.models[name].tensors.values() for x in t.flatten()}
    assert len(values) == 1
    return values.pop()


def test_weights_are_averaged_by_student_and_number_of_samples() -> None:
    one = started()
    untouched = one.models["linear+minus"]
    specs = {name: model.spec for name, model in one.models.items()}
    one.average(replies({"client-2": 8.0, "client-0": 4.0, "client-1": 10.0, "client-4": 2.0}, one))
    assert one.models["linear+minus"] is untouched
    assert value_of(one, "mlp+plus") == 7.0  # (3 * 8 + 1 * 4) / 4
    assert value_of(one, "linear+plus") == 4.0  # (2 * 10 + 6 * 2) / 8
    assert {name: model.spec for name, model in one.models.items()} == specs


def test_all_clients_of_a_view_may_share_one_student() -> None:
    one = started(lambda client: "linear")
    one.average(replies({"client-0": 10.0, "client-1": 1.0, "client-2": 4.0}, one))
    assert value_of(one, "linear+plus") == 4.0  # (1 * 10 + 2 * 1 + 3 * 4) / 6
    one.average([])
    assert value_of(one, "linear+plus") == 4.0


def test_an_empty_shard_does_not_count_and_alone_changes_nothing() -> None:
    one = started()
    [reply] = replies({"client-3": 5.0}, one)
    before = one.models["linear+minus"]
    one.average([replace(reply, client=replace(reply.client, num_samples=0))])
    assert one.models["linear+minus"] is before


def test_a_received_model_has_the_senders_weights_and_leaves_the_student_alone() -> None:
    one = started()
    [reply] = replies({"client-0": 5.0}, one)
    before = dict(one.models["mlp+plus"].tensors)
    received = one.received_model(reply)
    assert all(torch.equal(t, torch.full_like(t, 5.0)) for t in received.tensors.values())
    assert all(torch.equal(t, before[name]) for name, t in one.models["mlp+plus"].tensors.items())


def test_public_samples_are_those_of_the_round_without_labels() -> None:
    parties = federation(DataSettings(public_per_round=2))
    for round_ in range(1, 5):
        public = server(parties, round_).public("minus")
        assert torch.equal(public.ids, parties.public_subset(round_))
        assert torch.equal(public.inputs[:, 0], -public.ids.float())
        assert public.targets == {}


def test_public_labels_are_there_only_where_the_experiment_says_so() -> None:
    assert server().labelled_public("plus") is None
    labelled = server(federation(DataSettings(public_labels=True, public_per_round=2))).labelled_public("plus")
    assert labelled is not None
    assert labelled.ids.tolist() == PUBLIC.tolist()
    assert labelled.labels.tolist() == [1, 3, 1, 0, 1]


def test_pooled_samples_are_all_clients_training_samples() -> None:
    pooled = server().pooled("plus")
    assert sorted(pooled.ids.tolist()) == [4, 6, 7]
    assert pooled.labels.tolist() == [number % 4 for number in pooled.ids.tolist()]


def test_soft_labels_are_those_of_the_rounds_subset() -> None:
    one = server(federation(DataSettings(public_per_round=2)), round_=3)
    logits = torch.randn(2, 4)
    sent = one.soft_labels(logits)
    assert torch.equal(sent.ids, one.public("plus").ids)
    assert sent.logits is logits


def linear(tensors: dict[str, Tensor], inputs: Tensor) -> Tensor:
    features = inputs @ tensors["features.1.weight"].T + tensors["features.1.bias"]
    return features @ tensors["head.weight"].T + tensors["head.bias"]


def test_models_predict_each_on_its_own_view() -> None:
    one = started(lambda client: "linear")
    views = [one.public("plus"), one.public("minus")]
    found = one.predict([one.models["linear+plus"], one.models["linear+minus"]], views)
    assert found.shape == (2, 5, 4)
    for k, view in enumerate(("plus", "minus")):
        torch.testing.assert_close(found[k], linear(dict(one.models[f"linear+{view}"].tensors), views[k].inputs))
    with pytest.raises(ValueError, match="zip"):
        one.predict([one.models["linear+plus"]], views)


def test_the_task_is_to_tell_the_classes_apart() -> None:
    assert server().task == Classification(("a", "b", "c", "d"))
