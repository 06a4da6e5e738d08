"""The client side: a task is a pure function of its message and state, and a client that fails fails alone."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from fedkd import losses, metrics
from fedkd.app.client import EVALUATE, HELLO, TRAIN, ClientSide, ClientTask, Outcome, client_models, has_ensemble
from fedkd.app.introduction import agreed, introduction, libraries
from fedkd.app.state import State, digest, model_tensors
from fedkd.app.wire import COMMON, EXTRA, expect_sealed, header_of, knowledge_of, pack, to_tensors
from fedkd.config import Experiment
from fedkd.data.samples import Samples
from fedkd.flower_internals import ensure_task_identity
from fedkd.knowledge import Knowledge, SoftLabels
from fedkd.learner.fit import batches, predict
from fedkd.learner.model_file import to_module
from fedkd.learner.requests import Predict
from fedkd.strategy import Client, MethodCard, Replies, Server, Strategy

SMALL: Mapping[str, Any] = {
    "data": {"public": 60, "validation": 1200, "test": 100},
    "federation": {"clients": 4, "architectures": ("mlp",), "feature_width": 8},
    "train": {"local_epochs": 1},
}
PLANS = ["one-by-one", "cohorts"]
DRAWN: list[torch.Tensor] = []
"""What clients have drawn after a request."""


class Noted(Strategy):
    """Counts its rounds in place, draws from every global generator, and fails where it is told to."""

    card = MethodCard(title="test", authors="-", year=2026, up=SoftLabels, down=SoftLabels)

    def client_setup(self, client: Client) -> None:
        client.state = {"rounds": torch.zeros(1), "setups": torch.ones(1)}

    def client_round(self, client: Client, received: object) -> Knowledge:
        if client.card.key == "client-2" and client.round == 2:
            raise LookupError("client-2 has lost its data")
        client.state["rounds"] += 1
        client.state["noise"] = torch.rand(2) + torch.tensor(np.random.rand())
        client.models["student"].tensors["head.bias"].add_(1.0)
        client.fit(client.private, losses.cross_entropy)
        DRAWN.append(torch.rand(()))
        client.state["late"] = torch.rand(2) + torch.tensor(np.random.rand() + random.random())  # noqa: S311
        return client.predict(client.next_public_subset)

    def server_round(self, server: Server, replies: Replies) -> None:
        pass

    def client_predict(self, client: Client, samples: Samples) -> torch.Tensor:
        client.state["rounds"] += 100  # evaluation must not change what lasts
        logits = client.logits(samples)
        DRAWN.append(torch.rand(()))
        return logits


def experiment_of(strategy: str = "", plan: str = "one-by-one") -> Experiment:
    return Experiment(strategy=strategy or f"{__name__}:Noted", **SMALL, engine={"plan": plan})


def message(type_: str, knowledge: Knowledge | None = None, **header: object) -> Message:
    ensure_task_identity()
    return Message(pack(header, knowledge), dst_node_id=1, message_type=type_)


def train(side: ClientSide, key: str, round_: int, state: State | None = None) -> Outcome:
    [outcome] = side.handle([ClientTask(message(TRAIN, round=round_, client=key, version=0), key, state)])
    return outcome


def reply_digest(outcome: Outcome) -> str:
    knowledge = knowledge_of(outcome.reply.content)
    assert knowledge is not None
    assert outcome.state is not None
    return digest(knowledge.to_tensors(), outcome.state, str(header_of(outcome.reply.content)))


# --- train


def test_a_task_that_runs_twice_has_the_same_result() -> None:
    side = ClientSide(experiment_of())
    first = train(side, "client-1", 1)
    assert first.state is not None
    before = digest(first.state)

    second = [train(side, "client-1", 2, first.state) for _ in range(2)]

    assert reply_digest(second[0]) == reply_digest(second[1])
    assert digest(first.state) == before, "the old state was changed in place"
    assert second[0].state is not None
    assert second[0].state["state/rounds"].tolist() == [2.0]


def test_another_process_and_another_order_have_the_same_result() -> None:
    forward, backward = ClientSide(experiment_of()), ClientSide(experiment_of())
    keys = ["client-0", "client-1", "client-3"]

    left = {key: reply_digest(train(forward, key, 1)) for key in keys}
    torch.manual_seed(99)
    right = {key: reply_digest(train(backward, key, 1)) for key in reversed(keys)}

    assert left == right
    assert len(set(left.values())) == 3


@pytest.mark.parametrize("plan", PLANS)
def test_what_a_client_draws_does_not_depend_on_who_is_there(plan: str) -> None:
    side = ClientSide(experiment_of(plan=plan))
    keys = ["client-3", "client-0", "client-1"]
    together = side.handle([ClientTask(message(TRAIN, round=1, client=key, version=0), key, None) for key in keys])

    for key, outcome in zip(keys, together, strict=True):
        found, alone = outcome.state, train(side, key, 1).state
        assert found is not None
        assert alone is not None
        assert digest(found) == digest(alone)
    late = [outcome.state["state/late"].tolist() for outcome in together if outcome.state]
    assert len({tuple(values) for values in late}) == len(keys)


class Unstorable(Strategy):
    """Keeps what no file can hold, at one client."""

    card = MethodCard(title="test", authors="-", year=2026)

    def client_round(self, client: Client, received: object) -> None:
        kind = torch.complex128 if client.card.key == "client-1" else torch.float64
        client.state["spectrum"] = torch.zeros(2, dtype=kind)

    def server_round(self, server: Server, replies: Replies) -> None:
        pass


@pytest.mark.parametrize("plan", PLANS)
def test_a_client_whose_state_cannot_be_stored_fails_alone(plan: str) -> None:
    side = ClientSide(experiment_of(f"{__name__}:Unstorable", plan))
    tasks = [
        ClientTask(message(TRAIN, round=1, client=key, version=0), key, None) for key in ("client-0", "client-1")
    ]  # fmt: skip
    good, bad = side.handle(tasks)

    assert not good.reply.has_error()
    assert "state/spectrum: expected a type that can be stored, found torch.complex128" in str(bad.reply.error.reason)


def test_training_and_evaluation_draw_other_numbers() -> None:
    side = ClientSide(experiment_of())
    state = train(side, "client-1", 1).state
    DRAWN.clear()
    train(side, "client-1", 2, state)
    side.handle([ClientTask(message(EVALUATE, round=2, client="client-1", version=1), "client-1", state)])
    assert len({float(number) for number in DRAWN}) == len(DRAWN) > 2


def test_rounds_and_seeds_differ() -> None:
    side = ClientSide(experiment_of())
    other = ClientSide(experiment_of().changed(seed=1))

    noises = [
        found.state["state/noise"]
        for found in (train(side, "client-1", 1), train(side, "client-1", 2), train(other, "client-1", 1))
        if found.state is not None
    ]

    assert len({tuple(noise.tolist()) for noise in noises}) == 3


def test_set_up_happens_once() -> None:
    side = ClientSide(experiment_of())
    first = train(side, "client-1", 1)
    assert first.state is not None
    first.state["state/setups"] += 1

    second = train(side, "client-1", 2, first.state)

    assert second.state is not None
    assert second.state["state/setups"].tolist() == [2.0]


@pytest.mark.parametrize("plan", PLANS)
def test_a_client_that_fails_fails_alone(plan: str) -> None:
    side = ClientSide(experiment_of(plan=plan))
    keys = list(side.federation.holdings)
    states = {key: train(side, key, 1).state for key in keys}

    def together(chosen: list[str]) -> dict[str, Outcome]:
        tasks = [ClientTask(message(TRAIN, round=2, client=key), key, states[key]) for key in chosen]
        return dict(zip(chosen, side.handle(tasks), strict=True))

    outcomes, without = together(keys), together([key for key in keys if key != "client-2"])

    failed = outcomes.pop("client-2")
    assert failed.state is None
    assert failed.reply.has_error()
    reason = failed.reply.error.reason or ""
    assert reason.startswith("Traceback")
    assert reason.endswith("LookupError: client-2 has lost its data\n")
    assert Path(__file__).name in reason
    assert {k: digest(o.state or {}) for k, o in outcomes.items()} == {
        k: digest(o.state or {}) for k, o in without.items()
    }


def test_a_message_that_lacks_its_round_costs_the_task_only() -> None:
    side = ClientSide(experiment_of())

    [outcome] = side.handle([ClientTask(message(TRAIN, client="client-1"), "client-1", None)])

    assert "round: expected a whole number, found None" in (outcome.reply.error.reason or "")


def test_a_reply_says_who_when_and_what() -> None:
    side = ClientSide(experiment_of())

    outcome = train(side, "client-3", 1)

    knowledge = knowledge_of(outcome.reply.content)
    assert isinstance(knowledge, SoftLabels)
    header = header_of(outcome.reply.content)
    expect_sealed(header)
    assert {name: value for name, value in header.items() if name != "seal"} == {
        "kind": "SoftLabels",
        "round": 1,
        "client": "client-3",
        "num-samples": len(side.federation.holdings["client-3"].train),
        "steps": len(batches(len(side.federation.private("client-3")), 1, 32, seed=0)),
        "state": digest(outcome.state or {}),
    }
    student = client_models(side.experiment, {"client-3": outcome.state})["client-3"]["student"]
    public = side.federation.public("image")
    assert torch.equal(knowledge.logits, predict(Predict(student, public.inputs)))
    assert torch.equal(knowledge.ids, side.federation.splits.public)


def test_both_plans_start_from_the_same_models() -> None:
    models = [client_models(experiment_of(plan=plan), dict.fromkeys(["client-0", "client-1"], None)) for plan in PLANS]
    flat = [{key: digest(dict(m["student"].tensors)) for key, m in found.items()} for found in models]

    assert flat[0] == flat[1]
    assert flat[0]["client-0"] != flat[0]["client-1"]


# --- evaluate


def test_evaluation_measures_the_state_and_changes_nothing() -> None:
    side = ClientSide(experiment_of())
    state = train(side, "client-1", 1).state
    assert state is not None
    before = digest(state)

    task = ClientTask(message(EVALUATE, round=1, client="client-1"), "client-1", state)
    first, second = (side.handle([task])[0] for _ in range(2))

    assert first.state is None
    assert digest(state) == before
    scores = header_of(first.reply.content)
    assert scores == header_of(second.reply.content)
    [model] = client_models(side.experiment, {"client-1": state})["client-1"].values()
    assert dict(model.tensors).keys() == model_tensors(state, "student").keys()
    with torch.no_grad():
        for split, samples in {
            "global": side.federation.test("image"),
            "local": side.federation.local_test("client-1"),
        }.items():
            logits = to_module(model)(samples.inputs)
            right = (logits.argmax(1) == samples.labels).double().mean().item()
            assert scores[f"{split}/accuracy"] == pytest.approx(right)
            expected_loss = torch.nn.functional.cross_entropy(logits.double(), samples.labels).item()
            assert scores[f"{split}/nll"] == pytest.approx(expected_loss)
    assert EXTRA not in first.reply.content


def test_logits_travel_only_where_an_ensemble_is_evaluated() -> None:
    side = ClientSide(experiment_of("fedmd"))
    assert has_ensemble(side.strategy)
    assert not has_ensemble(ClientSide(experiment_of("local")).strategy)

    [outcome] = side.handle([ClientTask(message(EVALUATE, round=0, client="client-1"), "client-1", None)])

    test = side.federation.test("image")
    logits = to_tensors(outcome.reply.content.array_records[EXTRA])["logits"]
    assert logits.shape == (len(test.labels), 10)
    scores = header_of(outcome.reply.content)
    assert scores["global/ece"] == metrics.evaluate(logits, test.labels)["ece"]


def test_without_a_local_test_split_there_are_no_local_scores() -> None:
    side = ClientSide(experiment_of().changed(**{"data.local_test": 0.0}))

    [outcome] = side.handle([ClientTask(message(EVALUATE, round=0, client="client-1"), "client-1", None)])

    # Noted keeps its state since set-up, which an untrained client has not had: it fails, and alone.
    assert outcome.reply.has_error()
    plain = ClientSide(experiment_of("local").changed(**{"data.local_test": 0.0}))
    [outcome] = plain.handle([ClientTask(message(EVALUATE, round=0, client="client-1"), "client-1", None)])
    assert not [name for name in header_of(outcome.reply.content) if name.startswith("local/")]


# --- hello


def test_hello_says_what_the_server_expects() -> None:
    side = ClientSide(experiment_of("fml"))

    [outcome] = side.handle([ClientTask(message(HELLO), "client-2", None)])

    header = header_of(outcome.reply.content)
    labels = side.federation.dataset.labels[side.federation.holdings["client-2"].train]
    assert header.pop("kind") == ""
    assert header.pop("seal")
    assert header == {**introduction(side.federation, side.strategy, "client-2"), **libraries()}
    alike = header_of(outcome.reply.content, COMMON)
    assert alike.pop("seal")
    assert alike == agreed(experiment_of("fml"), side.federation, side.strategy)
    assert header["label-counts"] == [int((labels == c).sum()) for c in range(10)]
    assert header["num-samples"] == len(labels) == sum(header["label-counts"])  # type: ignore[arg-type]
    assert header["models"] == 2


def test_threads_are_pinned_as_the_experiment_says() -> None:
    ClientSide(experiment_of().changed(**{"engine.threads": 2}))

    assert torch.get_num_threads() == 2
