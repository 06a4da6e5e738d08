"""A grid that knows what it has not been answered yet."""

from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedkd.app import punctual
from fedkd.app.punctual import Punctual
from fedkd.app.refusals import LATE
from fedkd.app.server import ServerSide
from fedkd.config import Experiment
from fedkd.engine.local import LocalGrid
from fedkd.flower_internals import ensure_task_identity


class Slow(Grid):
    """A grid of nodes whose replies are there when they are asked for the n-th time, as Flower's is."""

    def __init__(self, inner: Any, delays: dict[int, int]) -> None:
        self.inner, self.delays = inner, delays
        self.waiting: dict[str, tuple[Message, int]] = {}
        self.asked: list[list[str]] = []
        self.count = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            self.count += 1
            names.append(f"m{self.count}")
            [reply] = self.inner.send_and_receive([message])
            reply.metadata.__dict__["_reply_to_message_id"] = names[-1]
            self.waiting[names[-1]] = reply, self.delays.get(message.metadata.dst_node_id, 0)
        return [*names, ""]  # Flower's word for a message that it did not take

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.asked.append(list(message_ids))
        found = []
        for name in self.asked[-1]:
            if name in self.waiting:
                reply, delay = self.waiting.pop(name)
                if delay:
                    self.waiting[name] = reply, delay - 1
                else:
                    found.append(reply)
        return found

    def get_node_ids(self) -> Iterable[int]:
        return [1, 2, 3]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        return Message(arguments[0], dst_node_id=arguments[2], message_type=arguments[1], group_id=arguments[3])

    def set_run(self, run: Any) -> None:
        self.number = run

    @property
    def run(self) -> Any:
        return self.number


class Echo:
    """Nodes that send back what they get."""

    def send_and_receive(self, messages: Iterable[Message]) -> list[Message]:
        return [Message(message.content, reply_to=message) for message in messages]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punctual, "_POLL_SECONDS", 0.01)
    ensure_task_identity()


def to(*nodes: int) -> list[Message]:
    return [Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes]


def senders(replies: Iterable[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]


def test_all_replies_are_waited_for() -> None:
    slow = Slow(Echo(), {2: 3})
    assert senders(Punctual(slow).send_and_receive(to(1, 2, 3), timeout=5)) == [1, 3, 2]
    assert slow.asked == [["m1", "m2", "m3"], ["m2"], ["m2"], ["m2"]]


def test_when_the_time_is_out_the_rest_comes_with_the_next() -> None:
    grid = Punctual(Slow(Echo(), {2: 1}))
    assert senders(grid.send_and_receive(to(1, 2, 3), timeout=0)) == [1, 3]
    assert senders(grid.send_and_receive(to(1, 3), timeout=5)) == [2, 1, 3]
    assert senders(grid.send_and_receive(to(1), timeout=5)) == [1]
    assert senders(grid.send_and_receive([], timeout=5)) == []


def test_only_the_newest_unanswered_messages_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punctual, "_MOST", 2)
    slow = Slow(Echo(), {1: 99})
    grid = Punctual(slow)
    for _ in range(4):
        assert senders(grid.send_and_receive(to(1), timeout=0)) == []
    assert slow.asked[-1] == ["m2", "m3", "m4"]


def test_everything_else_is_flowers() -> None:
    slow = Slow(Echo(), {})
    grid = Punctual(slow)
    grid.set_run(7)
    assert (grid.run, list(grid.get_node_ids())) == (7, [1, 2, 3])
    assert list(grid.push_messages(to(1))) == ["m1", ""]
    assert senders(grid.pull_messages(["m1"])) == [1]
    assert grid.create_message(RecordDict(), "train", 5, "2").metadata.dst_node_id == 5


def test_a_late_reply_is_refused_and_counted() -> None:
    experiment = Experiment(
        strategy="fedmd",
        data={"public": 40, "validation": 1300, "test": 40},  # type: ignore[arg-type]
        federation={"clients": 3, "architectures": ("mlp",)},  # type: ignore[arg-type]
        train={"local_epochs": 1},  # type: ignore[arg-type]
        strategies={"fedmd": {"transfer_epochs": 1, "digest_epochs": 1}},
    )
    slow = Slow(LocalGrid(experiment), {})
    grid, side = Punctual(slow), ServerSide(experiment)
    side.welcome(grid.send_and_receive(side.hello_messages([1, 2, 3]), timeout=5))

    records = []
    for round_ in (1, 2, 3):
        slow.delays = {2: 1} if round_ == 1 else {}
        messages = side.train_messages(round_)
        records.append(side.take_replies(messages, grid.send_and_receive(messages, timeout=0 if round_ == 1 else 5)))

    assert [sorted(record.participants) for record in records] == [
        ["client-0", "client-2"],
        ["client-0", "client-1", "client-2"],
        ["client-0", "client-1", "client-2"],
    ]
    assert records[0].failed == {"client-1": "no reply in time"}
    assert [record.refused for record in records] == [{}, {LATE: 1}, {}]
