"""A bad reply costs its client the round, and the result is what the others alone would have had."""

import logging
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pytest
import torch
from flwr.app import Error, Message
from torch import Tensor

from fedkd.app.client import TRAIN
from fedkd.app.loop import Run, run
from fedkd.app.server import ServerSide
from fedkd.app.wire import HEADER, PAYLOAD, header_of, knowledge_of, pack, to_arrays, to_tensors
from fedkd.config import Experiment
from fedkd.engine.local import LocalGrid
from fedkd.errors import RunError
from fedkd.knowledge import Generator, SoftLabels
from tests.app.tampering import (
    EXPERIMENT,
    ROUND,
    SMALL,
    VICTIM,
    Replies,
    Tamper,
    Tampered,
    error,
    finish,
    lost,
    of_unknown_node,
    outcome,
    put,
    raw_logits,
    replayed,
    untouched,
    with_content,
    with_header,
    with_ids,
    with_logits,
    with_tensors,
)

NESTED = "a:Bundle/" * 3000 + "x"
BAD: dict[str, tuple[Tamper, str]] = {
    "error": (error, "OSError: disk on fire"),
    "no reply": (lost, "no reply in time"),
    "unknown node": (of_unknown_node, "no reply in time"),
    "wrong client": (with_header(client="client-2"), "client: expected 'client-1', found 'client-2'"),
    "older round": (with_header(round=1), "round: expected 2, found 1"),
    "later round": (with_header(round=3), "round: expected 2, found 3"),
    "round is text": (with_header(round="2"), "round: expected 2, found '2'"),
    "round is a fraction": (with_header(round=2.0), "round: expected 2, found 2.0"),
    "round missing": (with_header(round=None), "round: expected 2, found None"),
    "replay": (replayed, "round: expected 2, found 1"),
    "num-samples one more": (lambda m, r, g: with_header(**_samples(r, 1))(m, r, g), "num-samples: expected"),
    "num-samples negative": (with_header(**{"num-samples": -39}), "num-samples: expected"),
    "num-samples zero": (with_header(**{"num-samples": 0}), "num-samples: expected"),
    "num-samples huge": (with_header(**{"num-samples": 10**18}), "num-samples: expected"),
    "num-samples 1e30": (with_header(**{"num-samples": 1e30}), "num-samples: expected"),
    "num-samples NaN": (with_header(**{"num-samples": float("nan")}), "num-samples: expected"),
    "num-samples missing": (with_header(**{"num-samples": None}), "num-samples: expected"),
    "state missing": (with_header(state=None), "state: expected a SHA-256, found None"),
    "state is no digest": (with_header(state="x" * 10**6), "state: expected a SHA-256, found 'xxx"),
    "steps missing": (with_header(steps=None), "steps: expected a whole number from 0 on, found None"),
    "steps negative": (with_header(steps=-1), "steps: expected a whole number from 0 on, found -1"),
    "steps true": (with_header(steps=True), "steps: expected a whole number from 0 on, found True"),
    "wrong kind": (with_header(kind="Features"), "kind: expected 'SoftLabels', found 'Features'"),
    "kind of nothing": (with_header(kind=""), "kind: expected 'SoftLabels', found ''"),
    "kind is a number": (with_header(kind=1), "kind: expected 'SoftLabels', found 1"),
    "other knowledge": (
        lambda m, r, g: [Message(pack(header_of(r.content), Generator({"w": torch.ones(1)})), reply_to=m)],
        "kind: expected 'SoftLabels', found 'Generator'",
    ),
    "bundle in a bundle": (
        lambda m, r, g: with_header(kind="Bundle")(m, with_tensors(lambda t: {NESTED: t["logits"]})(m, r, g)[0], g),
        "kind: expected 'SoftLabels', found 'Bundle'",
    ),
    "payload missing": (with_content(lambda c: {HEADER: c[HEADER]}), "expected a record named 'payload'"),
    "header missing": (with_content(lambda c: {PAYLOAD: c[PAYLOAD]}), "expected a record named 'header'"),
    "nothing at all": (with_content(lambda c: {}), "expected a record named 'header'"),
    "field missing": (with_tensors(lambda t: {"logits": t["logits"]}), r"missing ['ids'], unexpected []"),
    "field too many": (with_tensors(lambda t: {**t, "x": t["ids"]}), r"missing [], unexpected ['x']"),
    "NaN in 1 element": (with_logits(put((3, 4), float("nan"))), "logits: expected finite values, found 1 that are"),
    "NaN in 1 row": (with_logits(put((3,), float("nan"))), "found 10 that are not"),
    "all NaN": (with_logits(lambda x: x * float("nan")), "found 400 that are not"),
    "infinity": (with_logits(put((0, 0), float("inf"))), "found 1 that are not"),
    "a row less": (with_logits(lambda x: x[1:]), "found torch.float32 of shape (39, 10)"),
    "a row more": (with_logits(lambda x: torch.cat([x, x[:1]])), "shape (41, 10)"),
    "one row, broadcastable": (with_logits(lambda x: x[:1]), "shape (1, 10)"),
    "a class less": (with_logits(lambda x: x[:, 1:]), "shape (40, 9)"),
    "one class, broadcastable": (with_logits(lambda x: x[:, :1]), "shape (40, 1)"),
    "scalar": (with_logits(lambda x: x[0, 0]), "shape ()"),
    "flat": (with_logits(lambda x: x.flatten()), "shape (400,)"),
    "a dimension more": (with_logits(lambda x: x[None]), "shape (1, 40, 10)"),
    "transposed": (with_logits(lambda x: x.T), "shape (10, 40)"),
    "whole numbers": (with_logits(lambda x: x.long()), "logits: expected floating point, found torch.int64"),
    "complex numbers": (with_logits(lambda x: x.cfloat()), "logits: expected floating point"),
    "truth values": (with_logits(lambda x: x > 0), "logits: expected floating point, found torch.bool"),
    "double": (with_logits(lambda x: x.double()), "logits: expected torch.float32 or narrower, found torch.float64"),
    "public ids permuted": (with_ids(lambda ids: ids.flip(0)), "ids: expected the ids of the round's public subset"),
    "public ids off by one": (with_ids(lambda ids: ids + 1), "ids: expected the ids"),
    "public ids repeated": (with_ids(lambda ids: ids[:1].repeat(40)), "ids: expected the ids"),
    "public ids of another type": (with_ids(lambda ids: ids.int()), "ids: expected torch.int64"),
    "public ids as fractions": (with_ids(lambda ids: ids.double()), "ids: expected torch.int64"),
    "public ids scalar": (with_ids(lambda ids: ids[0]), "ids: expected torch.int64"),
    "damaged bytes": (raw_logits(b"\x93NUMPY\x01\x00garbage"), "payload: expected tensors as safetensors"),
    "damaged archive": (raw_logits(b"PK\x03\x04garbage"), "payload: expected tensors as safetensors"),
    "no bytes": (raw_logits(b""), "payload: expected tensors as safetensors"),
}


def _samples(reply: Message, more: int) -> dict[str, int]:
    return {"num-samples": int(header_of(reply.content)["num-samples"]) + more}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return EXPERIMENT


@pytest.fixture(scope="module")
def without(experiment: Experiment) -> Run:
    """Return the run in which the victim's reply of the round never arrived."""
    return finish(experiment, lost)


@pytest.fixture(scope="module")
def clean(experiment: Experiment) -> Run:
    return finish(experiment, untouched)


# --- train


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_costs_its_client_the_round_only(name: str, experiment: Experiment, without: Run) -> None:
    tamper, reason = BAD[name]

    finished = finish(experiment, tamper)

    assert outcome(finished) == outcome(without)
    assert list(finished.rounds[ROUND - 1].failed) == [VICTIM]
    assert reason in finished.rounds[ROUND - 1].failed[VICTIM]
    assert VICTIM not in finished.rounds[ROUND - 1].participants
    assert VICTIM in finished.rounds[ROUND].participants


def test_the_lost_reply_makes_a_difference(clean: Run, without: Run) -> None:
    digests, others = ([record.digest for record in finished.rounds] for finished in (clean, without))

    assert digests[0] == others[0]
    assert digests[1:] != others[1:]
    assert not any(record.failed for record in clean.rounds)


def test_the_consensus_is_the_mean_of_the_others(experiment: Experiment) -> None:
    sent: list[Tensor] = []
    received: list[Tensor] = []

    class Watching(Tampered):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
            messages = list(messages)
            for message in messages:
                if message.metadata.message_type == TRAIN and header_of(message.content)["round"] == ROUND + 1:
                    knowledge = knowledge_of(message.content)
                    assert isinstance(knowledge, SoftLabels)
                    received.append(knowledge.logits)
            replies = super().send_and_receive(messages)
            for reply in replies:
                header = header_of(reply.content)
                if header["kind"] == "SoftLabels" and header["round"] == ROUND and header["client"] != VICTIM:
                    sent.append(to_tensors(reply.content.array_records[PAYLOAD])["logits"])
            return replies

    run(Watching(experiment, BAD["NaN in 1 element"][0]), experiment)

    mean = np.mean(torch.stack(sent).double().numpy(), axis=0).astype(np.float32)
    assert len(sent) == 3
    assert len(received) == 4
    for logits in received:
        np.testing.assert_allclose(logits.numpy(), mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "surplus",
    [
        pytest.param(lambda m, r, g: [r, r], id="duplicate"),
        pytest.param(lambda m, r, g: [r] * 50, id="fifty votes"),
        pytest.param(lambda m, r, g: [r, *BAD["whole numbers"][0](m, r, g)], id="a bad one afterwards"),
        pytest.param(lambda m, r, g: [r, *with_logits(lambda x: -x)(m, r, g)], id="another one afterwards"),
        pytest.param(lambda m, r, g: [*replayed(m, r, g), r], id="replay before"),
        pytest.param(lambda m, r, g: [*error(m, r, g), r], id="error before"),
        pytest.param(lambda m, r, g: [*of_unknown_node(m, r, g), r], id="unknown node before"),
    ],
)
def test_the_first_valid_reply_counts_and_no_other(surplus: Tamper, experiment: Experiment, clean: Run) -> None:
    finished = finish(experiment, surplus)

    assert outcome(finished) == outcome(clean)
    assert not finished.rounds[ROUND - 1].failed


def test_surplus_replies_are_logged(experiment: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fedkd"):
        finish(experiment, lambda m, r, g: [r] * 6)

    assert [line for line in caplog.messages if "a second one, is not counted" in line] == [caplog.messages[0]] * 5


OTHERS: dict[str, dict[str, tuple[Tamper, str]]] = {
    "fedavg": {
        "shape": (with_tensors(lambda t: {n: v[:1] if v.ndim else v for n, v in t.items()}), "of shape (1"),
        "scalar": (with_tensors(lambda t: {n: v.flatten()[0] for n, v in t.items()}), "of shape ()"),
        "NaN": (with_tensors(lambda t: {n: v * float("nan") for n, v in t.items()}), "expected finite values"),
        "double": (with_tensors(lambda t: {n: v.double() for n, v in t.items()}), "found torch.float64"),
        "half": (with_tensors(lambda t: {n: v.half() for n, v in t.items()}), "found torch.float16"),
        "one less": (with_tensors(lambda t: dict(list(t.items())[1:])), "weights: expected the fields"),
        "one more": (with_tensors(lambda t: {**t, "x": torch.ones(1)}), "weights: expected the fields"),
        "none": (with_tensors(lambda t: {}), "weights: expected the fields"),
        "renamed": (with_tensors(lambda t: {f"{n}_": v for n, v in t.items()}), "weights: expected the fields"),
    },
    "fedproto": {
        "width": (with_tensors(lambda t: {**t, "means": t["means"][:, 1:]}), "means: expected"),
        "negative": (with_tensors(lambda t: {**t, "counts": -t["counts"]}), "counts: expected none below 0"),
        "huge": (with_tensors(lambda t: {**t, "counts": t["counts"] * 10**12}), "counts: expected at most"),
        "overflow": (with_tensors(lambda t: {**t, "counts": torch.full_like(t["counts"], 2**62)}), "counts: expected"),
        "one more": (with_tensors(lambda t: {**t, "counts": t["counts"] + torch.eye(10)[0].long()}), "at most"),
        "fractions": (with_tensors(lambda t: {**t, "counts": t["counts"].double()}), "counts: expected torch.int64"),
    },
    "fd": {
        "off the simplex": (with_tensors(lambda t: {**t, "probabilities": t["probabilities"] * 2}), "distributions"),
        "all absent": (with_tensors(lambda t: {**t, "present": t["present"].long()}), "present: expected torch.bool"),
    },
    "local": {
        "something": (
            lambda m, r, g: [Message(pack(header_of(r.content), Generator({"w": torch.ones(1)})), reply_to=m)],
            "kind: expected '', found 'Generator'",
        )
    },
}


@pytest.mark.parametrize(("strategy", "name"), [(strategy, name) for strategy, bad in OTHERS.items() for name in bad])
def test_every_kind_of_knowledge_is_checked(strategy: str, name: str) -> None:
    experiment = Experiment(strategy=strategy, **SMALL)
    tamper, reason = OTHERS[strategy][name]

    finished = finish(experiment, tamper)

    assert outcome(finished) == outcome(finish(experiment, lost))
    assert reason in finished.rounds[ROUND - 1].failed[VICTIM]


# --- what the client keeps


def test_a_refused_client_goes_on_from_the_state_that_the_server_knows(experiment: Experiment) -> None:
    asked: list[tuple[int, int]] = []

    def watch(message: Message, reply: Message, grid: Tampered) -> Replies:
        header = header_of(message.content)
        asked.append((int(header["round"]), int(header["version"])))  # type: ignore[arg-type]
        return BAD["NaN in 1 element"][0](message, reply, grid) if header["round"] in {2, 3} else [reply]

    longer = experiment.changed(rounds=5)

    class EveryRound(Tampered):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
            messages = list(messages)
            self.round = int(header_of(messages[0].content)["round"])  # type: ignore[arg-type]
            return super().send_and_receive(messages, timeout=timeout)

    finished = run(EveryRound(longer, watch), longer)

    assert asked == [(1, 0), (2, 1), (3, 1), (4, 1), (5, 4)]
    assert finished.versions == {"client-0": 5, "client-1": 5, "client-2": 5, "client-3": 5}


# --- evaluate


def without_score(message: Message, reply: Message, grid: Tampered) -> Replies:
    return with_header(**{"global/nll": None})(message, reply, grid)


def with_extra(change: Callable[[Tensor], Mapping[str, Tensor]]) -> Tamper:
    return with_content(
        lambda c: {**c, "extra": to_arrays(change(to_tensors(c.array_records["extra"])["logits"].clone()))}
    )


BAD_EVALUATIONS: dict[str, Tamper] = {
    "no reply": lost,
    "error": error,
    "wrong client": with_header(client="client-2"),
    "wrong round": with_header(round=1),
    "header missing": with_content(lambda c: {"extra": c["extra"]}),
    "score missing": without_score,
    "score too many": with_header(**{"global/fame": 1.0}),
    "score of nobody": with_header(**{"his/accuracy": 1.0}),
    "score is text": with_header(**{"global/nll": "0"}),
    "accuracy above 1": with_header(**{"global/accuracy": 1e30}),
    "accuracy NaN": with_header(**{"local/accuracy": float("nan")}),
    "half of the local scores": with_header(**{"local/nll": None}),
    "logits missing": with_content(lambda c: {HEADER: c[HEADER]}),
    "logits under another name": with_extra(lambda x: {"x": x}),
    "logits of other shape": with_extra(lambda x: {"logits": x[1:]}),
    "logits are whole numbers": with_extra(lambda x: {"logits": x.long()}),
    "unknown node": of_unknown_node,
}


@pytest.mark.parametrize("name", BAD_EVALUATIONS)
def test_a_bad_evaluation_is_left_out_of_that_evaluation(name: str, experiment: Experiment, clean: Run) -> None:
    short = experiment.changed(rounds=2)

    finished = finish(short, BAD_EVALUATIONS[name], "evaluate")

    assert outcome(finished) == outcome(finish(short, lost, "evaluate"))
    assert [record.digest for record in finished.rounds] == [record.digest for record in clean.rounds[:2]]
    assert [client.client for client in finished.clients] == ["client-0", "client-2", "client-3"]


def test_a_second_evaluation_is_not_counted(experiment: Experiment, clean: Run) -> None:
    finished = finish(
        experiment.changed(rounds=2), lambda m, r, g: [r, *with_header(**{"global/accuracy": 1.0})(m, r, g)], "evaluate"
    )

    assert finished.rounds[1].to_json()["metrics"] == clean.rounds[1].to_json()["metrics"]


def test_a_student_that_diverged_is_measured_but_teaches_nobody(experiment: Experiment, clean: Run) -> None:
    short = experiment.changed(rounds=2)

    finished = finish(short, with_extra(lambda x: {"logits": x * float("nan")}), "evaluate")

    metrics, others = finished.rounds[1].metrics, finish(short, lost, "evaluate").rounds[1].metrics
    assert metrics is not None
    assert others is not None
    assert clean.rounds[1].metrics is not None
    assert metrics["clients_global"] == clean.rounds[1].metrics["clients_global"]
    assert metrics["ensemble_global"] == others["ensemble_global"] != clean.rounds[1].metrics["ensemble_global"]


def test_a_run_goes_on_where_nobody_can_be_evaluated(experiment: Experiment, clean: Run) -> None:
    class Mute(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
            return [m for m in super().send_and_receive(messages) if m.metadata.message_type != "evaluate"]

    finished = run(Mute(experiment), experiment)

    assert finished.summary["digest"] == clean.summary["digest"]
    assert finished.clients == []
    assert set(finished.rounds[-1].unmeasured.values()) == {"no reply in time"}
    assert len(finished.rounds[-1].unmeasured) == 4
    assert finished.summary["metrics"] == dict.fromkeys(
        ["clients_global", "clients_local", "ensemble_global", "server_global"]
    )


# --- nobody is usable


def test_when_every_evaluation_fails_the_run_stops_and_says_why(experiment: Experiment) -> None:
    class Failing(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
            sent = list(messages)
            if sent[0].metadata.message_type != "evaluate":
                return list(super().send_and_receive(sent))
            return [Message(Error(code=0, reason="Traceback\nOSError: no test set"), reply_to=m) for m in sent]

    with pytest.raises(RunError, match="OSError: no test set") as caught:
        run(Failing(experiment), experiment)

    assert str(caught.value).count("OSError") == 1


def test_a_result_that_is_no_number_is_not_sent_to_everybody(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, grid = ServerSide(experiment), LocalGrid(experiment)
    side.welcome(grid.send_and_receive(side.hello_messages(grid.get_node_ids())))
    messages = side.train_messages(1)
    diverged = SoftLabels(side.federation.public_subset(1), torch.full((40, 10), float("nan")))
    monkeypatch.setattr(type(side.strategy), "server_round", lambda self, server, replies: diverged)

    with pytest.raises(RunError, match="round 1: logits is not finite after the server's half"):
        side.take_replies(messages, grid.send_and_receive(messages))


def test_when_nobody_is_usable_the_run_stops_and_says_why_once_per_cause(experiment: Experiment) -> None:
    class Failing(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
            sent = list(messages)
            if sent[0].metadata.message_type != TRAIN:
                return list(super().send_and_receive(sent))
            reasons = ["Traceback A\nZeroDivisionError: a"] * 2 + ["Traceback B\nOSError: b", None]
            pairs = zip(sent, reasons, strict=True)
            return [Message(Error(code=0, reason=reason), reply_to=message) for message, reason in pairs]

    with pytest.raises(RunError) as caught:
        run(Failing(experiment), experiment)

    assert str(caught.value) == (
        "round 1: no client sent a usable reply.\n"
        "client-0, client-1:\nTraceback A\nZeroDivisionError: a\n"
        "client-2:\nTraceback B\nOSError: b\n"
        "client-3:\nthe client failed without saying why"
    )


def test_when_nobody_answers_the_run_stops(experiment: Experiment) -> None:
    class Silent(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
            sent = list(messages)
            return list(super().send_and_receive(sent)) if sent[0].metadata.message_type != TRAIN else []

    with pytest.raises(RunError, match="client-0, client-1, client-2, client-3:\nno reply in time"):
        run(Silent(experiment), experiment)
