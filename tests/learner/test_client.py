"""The client as its half of a strategy sees it: its own samples, in its own view."""

from dataclasses import replace

import pytest
import torch

from fedkd import losses
from fedkd.config import DataSettings, Experiment, TrainSettings
from fedkd.data.federation import Federation, Holding, Splits
from fedkd.data.sources import DataSet
from fedkd.errors import UserError
from fedkd.knowledge import SoftLabels
from fedkd.learner.base import ClientCard
from fedkd.learner.client import Client
from fedkd.learner.fit import answer
from fedkd.learner.model import fresh
from fedkd.task import Classification

TRAIN, PUBLIC = torch.tensor([4, 6, 7]), torch.tensor([1, 3, 5, 8, 9])

DEFAULTS = DataSettings()


def federation(data: DataSettings = DEFAULTS, dtype: str = "float32") -> Federation:
    """Ten samples in two views; the number in a view is the sample's id, negative in the second view."""
    numbers = torch.arange(10.0)
    views = {"plus": numbers[:, None].repeat(1, 3), "minus": -numbers[:, None].repeat(1, 2)}
    dataset = DataSet("ten", views, torch.arange(10) % 4, ("a", "b", "c", "d"))
    splits = Splits(TRAIN, PUBLIC, torch.tensor([2]), torch.tensor([0]))
    experiment = Experiment(data=data, train=TrainSettings(dtype=dtype))  # type: ignore[arg-type]
    having = {"minus": TRAIN, "plus": TRAIN[:2]}
    holdings = {"client-0": Holding("client-0", "linear", "minus", TRAIN, torch.tensor([2]), having, TRAIN)}
    return Federation(experiment, dataset, splits, holdings)


def client(parties: Federation, round_: int = 1) -> Client:
    models = {name: fresh(parties.model_spec("linear", "minus"), seed, parties.like) for seed, name in enumerate("sm")}
    return Client(
        models={"student": models["s"], "meme": models["m"]},
        state={},
        round=round_,
        seed=0,
        train=parties.experiment.train,
        ask=answer,
        card=ClientCard("client-0", "linear", "minus", 3),
        federation=parties,
    )


def test_private_samples_are_the_shard_in_the_clients_view() -> None:
    private = client(federation()).private
    assert private.ids.tolist() == [4, 6, 7]
    assert private.inputs.tolist() == [[-4.0, -4.0], [-6.0, -6.0], [-7.0, -7.0]]
    assert private.labels.tolist() == [0, 2, 3]
    assert client(federation()).classes == 4


def test_the_public_subset_has_inputs_in_the_clients_view_and_no_labels() -> None:
    public = client(federation()).next_public_subset
    assert public.ids.tolist() == PUBLIC.tolist()
    assert public.inputs[:, 0].tolist() == [-1.0, -3.0, -5.0, -8.0, -9.0]
    assert public.targets == {}


def test_private_samples_in_another_view_are_those_that_have_it() -> None:
    private = client(federation()).private_in("plus")
    assert private.ids.tolist() == [4, 6]
    assert private.inputs[:, 0].tolist() == [4.0, 6.0]
    assert private.labels.tolist() == [0, 2]
    with pytest.raises(UserError, match=r"client-0: expected a view that it holds \(minus, plus\), found 'other'"):
        client(federation()).private_in("other")


def test_public_samples_come_in_the_clients_views_and_the_teachers_only() -> None:
    parties = federation()
    one = client(parties)
    with pytest.raises(UserError, match=r"client-0: expected a view that it holds \(minus\), found 'plus'"):
        one.next_public_subset_in("plus")
    taught = replace(one, card=replace(one.card, teacher_view="plus"))
    assert taught.next_public_subset_in("plus").inputs[:, 0].tolist() == [1.0, 3.0, 5.0, 8.0, 9.0]
    received = SoftLabels(PUBLIC[:1], torch.ones(1, 4))
    assert taught.public(received, "plus").inputs[:, 0].tolist() == [1.0]
    with pytest.raises(UserError, match="found 'plus'"):
        one.public(received, "plus")


def test_held_out_samples_are_the_same_in_every_round() -> None:
    parties = federation()
    kept, held = client(parties).held_out(1 / 3)
    assert (len(kept), len(held)) == (2, 1)
    assert sorted([*kept.ids.tolist(), *held.ids.tolist()]) == TRAIN.tolist()
    assert kept.labels.tolist() == [number % 4 for number in kept.ids.tolist()]
    assert torch.equal(client(parties, round_=2).held_out(1 / 3)[1].ids, held.ids)
    assert held.inputs[:, 0].tolist() == (-held.ids).tolist()
    assert [len(part) for part in client(parties).held_out(0.5, "plus")] == [1, 1]
    assert len(client(parties).held_out(0.0)[1]) == 0


def test_the_steps_of_a_round_are_counted() -> None:
    one = client(federation())
    one.fit(one.private, losses.cross_entropy, epochs=2, batch_size=2)  # a single last sample joins its neighbours
    one.fit(one.private, losses.cross_entropy, epochs=0)
    one.fit(one.private, losses.cross_entropy, epochs=1, batch_size=1)
    assert one.steps == 2 + 3


def test_the_public_subset_is_that_of_the_round() -> None:
    parties = federation(DataSettings(public_per_round=2))
    subsets = [client(parties, round_).next_public_subset.ids for round_ in range(1, 9)]
    assert all(torch.equal(ids, parties.public_subset(round_)) for round_, ids in enumerate(subsets, start=1))
    assert {len(ids) for ids in subsets} == {2}
    assert len({tuple(ids.tolist()) for ids in subsets}) > 2


def test_public_labels_are_there_only_where_the_experiment_says_so() -> None:
    assert client(federation()).labelled_public is None
    labelled = client(federation(DataSettings(public_labels=True))).labelled_public
    assert labelled is not None
    assert labelled.ids.tolist() == PUBLIC.tolist()
    assert labelled.labels.tolist() == [1, 3, 1, 0, 1]
    assert labelled.inputs[:, 0].tolist() == [-1.0, -3.0, -5.0, -8.0, -9.0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_received_soft_labels_become_the_teacher_of_their_samples(dtype: str) -> None:
    received = SoftLabels(torch.tensor([8, 1]), torch.tensor([[8.0, 0, 0, 0], [1.0, 0, 0, 0]]))
    taught = client(federation(dtype=dtype)).public(received)
    assert taught.ids.tolist() == [8, 1]
    assert taught.inputs[:, 0].tolist() == [-8.0, -1.0]
    assert set(taught.targets) == {"teacher"}
    assert taught.targets["teacher"][:, 0].tolist() == [8.0, 1.0]
    assert taught.targets["teacher"].dtype == taught.inputs.dtype == getattr(torch, dtype)


def test_soft_labels_carry_the_ids_of_their_samples() -> None:
    one = client(federation())
    public = one.next_public_subset
    for name in ("student", "meme"):
        found = one.predict(public.take(torch.tensor([3, 0])), name)
        assert found.ids.tolist() == [8, 1]
        torch.testing.assert_close(found.logits, one.logits(public, name)[[3, 0]])
    assert torch.equal(one.predict(public).logits, one.predict(public, "student").logits)
    assert not torch.equal(one.predict(public).logits, one.predict(public, "meme").logits)


def test_a_round_trip_of_ones_own_soft_labels_is_aligned() -> None:
    one = client(federation(DataSettings(public_per_round=3)), round_=2)
    sent = one.predict(one.next_public_subset)
    back = replace(one, round=5).public(sent)
    assert torch.equal(back.ids, sent.ids)
    assert torch.equal(back.targets["teacher"], sent.logits)
    assert torch.equal(one.logits(back), sent.logits)


def test_the_task_is_to_tell_the_classes_apart() -> None:
    assert client(federation()).task == Classification(("a", "b", "c", "d"))
