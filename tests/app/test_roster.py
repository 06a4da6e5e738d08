"""Who takes part: what a client says of itself is a claim too, and one bad claim does not end the run."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedkd.app.client import HELLO
from fedkd.app.introduction import Said, agreed, introduction
from fedkd.app.loop import Run, run
from fedkd.app.roster import Participant, read_answers, roster_of
from fedkd.app.wire import COMMON, HEADER, SEAL, Header, header_of, pack, sealed
from fedkd.config import Experiment
from fedkd.data.federation import build
from fedkd.engine.local import LocalGrid
from fedkd.errors import RunError
from fedkd.flower_internals import ensure_task_identity
from fedkd.learner.base import ClientCard
from fedkd.strategy.registry import create

SMALL: Mapping[str, Any] = {
    "strategy": "fedavg",
    "rounds": 2,
    "data": {"public": 40, "validation": 1300, "test": 40},
    "federation": {"clients": 4, "architectures": ("mlp",), "feature_width": 8, "participation": 0.75},
    "train": {"local_epochs": 1},
}
EXPERIMENT = Experiment(**SMALL)
VICTIM = "client-1"
Replies = list[Message]
Hello = Callable[[Message, Message], Replies]


class Introduced(LocalGrid):
    """A grid on which one client's answer to the hello is replaced; further nodes may answer for it."""

    def __init__(self, experiment: Experiment, hello: Hello) -> None:
        super().__init__(experiment)
        self._hello = hello

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
        sent = {message.metadata.dst_node_id: message for message in messages}
        received: Replies = []
        for reply in super().send_and_receive(sent.values()):
            message = sent[reply.metadata.src_node_id]
            mine = self._keys[reply.metadata.src_node_id] == VICTIM
            is_hello = message.metadata.message_type == HELLO
            received += self._hello(message, reply) if mine and is_hello else [reply]
        return received


def changed(**changes: object) -> Hello:
    def hello(message: Message, reply: Message) -> Replies:
        said = {**header_of(reply.content, COMMON), **header_of(reply.content), **changes}
        header = {name: value for name, value in said.items() if value is not None}
        return [Message(RecordDict({HEADER: ConfigRecord(header)}), reply_to=message)]  # type: ignore[arg-type]

    return hello


def with_common(change: Callable[[Header], ConfigRecord]) -> Hello:
    """Change what all clients say alike, which lies in a record of its own."""

    def hello(message: Message, reply: Message) -> Replies:
        common = header_of(reply.content, COMMON)
        return [Message(RecordDict({HEADER: reply.content[HEADER], COMMON: change(common)}), reply_to=message)]

    return hello


def plain(header: Mapping[str, Any]) -> ConfigRecord:
    return ConfigRecord(dict(header))


def without_seal(header: Header) -> Header:
    return {name: value for name, value in header.items() if name != SEAL}


def from_node(node_id: int, message: Message, reply: Message) -> Message:
    asked = Message(message.content, dst_node_id=node_id, message_type=HELLO)
    return Message(reply.content, reply_to=asked)


def failed(message: Message, reply: Message) -> Replies:
    return [Message(Error(code=0, reason="Traceback\nImportError: no torch here"), reply_to=message)]


COUNTS = introduction(build(EXPERIMENT), create(EXPERIMENT), VICTIM)["label-counts"]
BAD: dict[str, tuple[Hello, str]] = {
    "error": (failed, "it could not say who it is:\nTraceback\nImportError: no torch here"),
    "other public set": (changed(**{"public-set": "0" * 64}), "client-1: public-set: expected '"),
    "other code": (changed(code="0" * 64), "client-1: code: expected '"),
    "other version": (changed(version="9.9"), "client-1: version: expected '0.1.0' as the server has it, found '9.9'"),
    "other code, sealed": (
        with_common(lambda c: sealed({**without_seal(c), "code": "0"})),
        "client-1: code: expected '",
    ),
    "other code, under the old seal": (with_common(lambda c: plain({**c, "code": "0"})), "a header that is as it was"),
    "something more": (with_common(lambda c: plain({**c, "more": "0"})), "a header that is as it was"),
    "no seal": (with_common(lambda c: plain({**without_seal(c), "code": "0"})), "a header that is as it was"),
    "public set missing": (changed(**{"public-set": None}), "client-1: public-set: expected"),
    "unknown name": (changed(client="client-7"), "the federation has no client 'client-7'"),
    "no name": (changed(client=None), "the federation has no client None"),
    "name is a number": (changed(client=1), "the federation has no client 1"),
    "other architecture": (changed(architecture="cnn"), "client-1: architecture: expected 'mlp'"),
    "unknown architecture": (changed(architecture="../../x"), "client-1: architecture: expected 'mlp'"),
    "other view": (changed(view="image@4"), "client-1: view: expected 'image'"),
    "num-samples huge": (changed(**{"num-samples": 10**18}), "client-1: num-samples: expected"),
    "num-samples negative": (changed(**{"num-samples": -39}), "client-1: num-samples: expected"),
    "num-samples NaN": (changed(**{"num-samples": float("nan")}), "client-1: num-samples: expected"),
    "label counts lie": (changed(**{"label-counts": COUNTS[::-1]}), "client-1: label-counts: expected"),
    "label counts short": (changed(**{"label-counts": COUNTS[1:]}), "client-1: label-counts: expected"),
    "models lie": (changed(models=0), "client-1: models: expected 1"),
    "header missing": (lambda m, r: [Message(RecordDict(), reply_to=m)], "expected a record named 'header'"),
    "someone else's name": (changed(client="client-3"), "client-3: "),
    "two of one name": (
        lambda m, r: [r, from_node(99, m, r)],
        "client-1: expected one client of this name, found 2 (nodes ",
    ),
}


def outcome(finished: Run) -> object:
    rounds = [{**record.to_json(), "seconds": 0} for record in finished.rounds]
    models = {name: {k: t.tolist() for k, t in m.tensors.items()} for name, m in finished.server_models.items()}
    return rounds, [client.to_json() for client in finished.clients], models


@pytest.fixture(scope="module")
def without() -> Run:
    return run(Introduced(EXPERIMENT, lambda message, reply: []), EXPERIMENT)


@pytest.mark.parametrize("name", BAD)
def test_a_client_that_does_not_fit_takes_no_part(name: str, without: Run, caplog: pytest.LogCaptureFixture) -> None:
    hello, reason = BAD[name]

    with caplog.at_level(logging.WARNING, "fedkd"):
        finished = run(Introduced(EXPERIMENT, hello), EXPERIMENT)

    assert outcome(finished) == outcome(without)
    [warning] = caplog.messages
    assert reason in warning
    assert len(warning) < 400


def test_a_node_that_answers_twice_is_one_client() -> None:
    clean = run(LocalGrid(EXPERIMENT), EXPERIMENT)

    finished = run(Introduced(EXPERIMENT, lambda message, reply: [reply, reply]), EXPERIMENT)

    assert outcome(finished) == outcome(clean)
    assert VICTIM in {client.client for client in finished.clients}


def test_a_node_that_answers_under_a_second_name_keeps_its_first() -> None:
    clean = run(LocalGrid(EXPERIMENT), EXPERIMENT)
    other = introduction(build(EXPERIMENT), create(EXPERIMENT), "client-3")

    finished = run(Introduced(EXPERIMENT, lambda m, r: [r, *changed(**other)(m, r)]), EXPERIMENT)

    assert outcome(finished) == outcome(clean)


def read(replies: Iterable[Message]) -> dict[str, Participant]:
    federation, strategy = build(EXPERIMENT), create(EXPERIMENT)
    common = agreed(EXPERIMENT, federation, strategy)
    return roster_of(read_answers(replies, common, federation, strategy), federation)


def hellos(change: Mapping[str, object]) -> Replies:
    ensure_task_identity()
    federation, strategy = build(EXPERIMENT), create(EXPERIMENT)
    common = agreed(EXPERIMENT, federation, strategy)
    answers = []
    for node, key in enumerate(federation.holdings, start=7):
        asked = Message(pack({}), dst_node_id=node, message_type=HELLO)
        answers.append(Message(pack({**introduction(federation, strategy, key), **common, **change}), reply_to=asked))
    return answers


def test_the_roster_is_sorted_by_name_whatever_the_order_of_arrival() -> None:
    roster = read(reversed(hellos({})))

    assert list(roster) == ["client-0", "client-1", "client-2", "client-3"]
    assert {key: participant.node_id for key, participant in roster.items()} == dict(
        zip(roster, [7, 8, 9, 10], strict=True)
    )
    labels = build(EXPERIMENT).dataset.labels[build(EXPERIMENT).holdings["client-2"].train].tolist()
    assert roster["client-2"].said.card == ClientCard("client-2", "mlp", "image", len(labels))
    assert roster["client-2"].said.label_counts == [labels.count(c) for c in range(10)]
    assert roster["client-2"].said.models == 1


def test_when_nobody_fits_the_run_stops_with_every_reason() -> None:
    with pytest.raises(RunError, match="no client can take part") as caught:
        read(hellos({"code": "0" * 64}))

    assert [line.split(": ")[:2] for line in str(caught.value).splitlines()[1:]] == [
        [f"node {node}", key] for node, key in enumerate(build(EXPERIMENT).holdings, start=7)
    ]


def test_a_traceback_from_other_folders_is_the_same_failure() -> None:
    ensure_task_identity()
    replies = [
        Message(Error(code=0, reason=f"Traceback\n  File /{node}/x.py\nOSError: {what}\n"), reply_to=message)
        for node, what in ((1, "no data"), (2, "no data"), (3, "no disk"))
        for message in [Message(pack({}), dst_node_id=node, message_type=HELLO)]
    ]

    with pytest.raises(RunError) as caught:
        read(replies)

    first, second = "Traceback\n  File /1/x.py\nOSError: no data", "Traceback\n  File /3/x.py\nOSError: no disk"
    _, _, causes = str(caught.value).partition("\n")
    assert causes == f"nodes 1, 2: it could not say who it is:\n{first}\nnode 3: it could not say who it is:\n{second}"


def test_when_all_fail_alike_the_run_stops_with_their_traceback_once() -> None:
    ensure_task_identity()
    asked = [Message(pack({}), dst_node_id=node, message_type=HELLO) for node in range(1, 5)]
    replies = [Message(Error(code=0, reason="Traceback\nOSError: no data\n"), reply_to=message) for message in asked]

    with pytest.raises(RunError) as caught:
        read(replies)

    assert str(caught.value).count("OSError: no data") == 1


def test_when_nobody_answers_the_run_stops() -> None:
    with pytest.raises(RunError, match="none answered the server's hello"):
        read([])


def test_scores_are_recorded_by_where_they_were_measured() -> None:
    participant = Participant(Said(ClientCard("a", "mlp", "image", 3), [1, 2], {"image": 4}, 1), 1)

    record = participant.record({"global/accuracy": 0.5, "global/nll": 2.0, "local/accuracy": 0.25})

    assert record.to_json() == {
        "client": "a",
        "architecture": "mlp",
        "view": "image",
        "num_samples": 3,
        "missing": {"image": 4},
        "label_counts": [1, 2],
        "global": {"accuracy": 0.5, "nll": 2.0},
        "local": {"accuracy": 0.25},
    }
    assert participant.record({"global/accuracy": 0.5}).local is None
