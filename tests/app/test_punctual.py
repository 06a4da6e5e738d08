"""A grid that knows what it has not been answered yet."""

from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedkd.app import punctual
from fedkd.app.punctual import ARE_YOU_THERE, Punctual
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


class Queues(Slow):
    """Nodes that work as SuperNodes do: one message at a time, in order; some messages are lost without a word."""

    def __init__(self, lost: set[str], seconds: int = 1) -> None:
        super().__init__(Echo(), {})
        self.lost, self.seconds = lost, seconds
        self.sent: list[tuple[str, int, str]] = []
        self.queues: dict[int, list[tuple[str, Message, int]]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            names.append(f"m{len(self.sent) + 1}")
            message.metadata.__dict__["_message_id"] = names[-1]
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            self.sent.append((names[-1], node, kind))
            seconds = 1 if kind == ARE_YOU_THERE else self.seconds
            self.queues.setdefault(node, []).append((names[-1], message, seconds))
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        names, found = set(message_ids), []
        for queue in self.queues.values():
            name, message, seconds = queue.pop(0) if queue else ("", None, 0)
            if message is not None and seconds > 1:
                queue.insert(0, (name, message, seconds - 1))
            elif message is not None and name not in self.lost:
                assert name in names, "an answer that nobody would ever fetch"
                found.append(Message(message.content, reply_to=message))
        return found


@pytest.fixture
def _doubting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punctual, "_DOUBT_SECONDS", 0.05)


@pytest.mark.usefixtures("_doubting")
def test_what_is_lost_is_sent_once_more(caplog: pytest.LogCaptureFixture) -> None:
    nodes = Queues({"m2"})
    content = RecordDict({"it": ConfigRecord({"round": 7})})
    asked = [*to(1), Message(content, dst_node_id=2, message_type="train", group_id="7"), *to(3)]

    replies = list(Punctual(nodes).send_and_receive(asked, timeout=20))

    assert senders(replies) == [1, 3, 2]
    assert nodes.sent[3:] == [("m4", 2, ARE_YOU_THERE), ("m5", 2, "train")]
    assert replies[2].metadata.reply_to_message_id == "m5"
    assert replies[2].content["it"] == content["it"]
    assert "round 7: train was lost on its way to node 2 or back; it is sent again" in caplog.text


@pytest.mark.usefixtures("_doubting")
def test_a_node_that_is_still_at_it_gets_the_small_question_and_nothing_twice() -> None:
    nodes = Queues(set(), seconds=30)
    grid = Punctual(nodes)

    assert senders(grid.send_and_receive(to(1, 2), timeout=20)) == [1, 2]
    assert [kind for _, _, kind in nodes.sent] == ["train", "train", ARE_YOU_THERE, ARE_YOU_THERE]
    nodes.seconds = 1
    assert senders(grid.send_and_receive(to(1, 2), timeout=20)) == [1, 2], "answers to small questions are no replies"
    assert not any(nodes.queues.values())


@pytest.mark.usefixtures("_doubting")
def test_what_is_lost_again_is_not_sent_a_third_time() -> None:
    nodes = Queues({"m1", "m3"})

    assert senders(Punctual(nodes).send_and_receive(to(1), timeout=0.5)) == []
    assert [kind for _, _, kind in nodes.sent] == ["train", ARE_YOU_THERE, "train"]


@pytest.mark.usefixtures("_doubting")
def test_a_lost_question_changes_nothing() -> None:
    nodes = Queues({"m1", "m2"})

    assert senders(Punctual(nodes).send_and_receive(to(1), timeout=0.5)) == []
    assert [kind for _, _, kind in nodes.sent] == ["train", ARE_YOU_THERE]


def test_nobody_is_doubted_before_flower_itself_would_tell_of_a_dead_node() -> None:
    nodes = Queues({"m1"})

    assert senders(Punctual(nodes).send_and_receive(to(1), timeout=0.2)) == []
    assert [kind for _, _, kind in nodes.sent] == ["train"]
    assert punctual._DOUBT_SECONDS > 70


def test_what_flower_says_in_a_nodes_stead_is_that_nodes() -> None:
    class Gone(Queues):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            gone = Message(Error(code=5, reason="Error: Node Unavailable"), reply_to=self.asked_of_2)
            gone.metadata.__dict__["_src_node_id"] = 1  # Flower's own
            return [gone if reply.metadata.src_node_id == 2 else reply for reply in replies]

        asked_of_2: Message

    nodes, asked = Gone(set()), to(3, 2)
    nodes.asked_of_2 = asked[1]

    replies = list(Punctual(nodes).send_and_receive(asked, timeout=5))

    assert senders(replies) == [3, 2]
    assert replies[1].error.reason == "Error: Node Unavailable"


def test_what_flower_says_in_a_nodes_stead_is_that_nodes_also_when_it_comes_late() -> None:
    class Gone(Slow):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return [self.stand_in if r.metadata.src_node_id == 2 else r for r in super().pull_messages(message_ids)]

        stand_in: Message

    content = RecordDict({"it": ConfigRecord({"much": b"x" * 1000})})
    asked = [Message(content, dst_node_id=node, message_type="train", group_id="1") for node in (1, 2)]
    slow = Gone(Echo(), {2: 1})
    slow.stand_in = Message(Error(code=5, reason="Error: Node Unavailable"), reply_to=to(4)[0])
    slow.stand_in.metadata.__dict__["_reply_to_message_id"] = "m2"
    grid = Punctual(slow)

    assert senders(grid.send_and_receive(asked, timeout=0)) == [1]
    assert [message.content for message in grid._unanswered.values()] == [RecordDict()]
    found = list(grid.send_and_receive(to(1), timeout=5))

    assert senders(found) == [2, 1]
    assert (found[0].metadata.message_type, found[0].metadata.group_id) == ("train", "1")
    assert found[0].error.reason == "Error: Node Unavailable"


class Refused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = type("Response", (), {"status_code": status})()


@pytest.mark.parametrize("status", [500, 403])
def test_a_superlink_that_fails_once_is_asked_again(status: int) -> None:
    class Locked(Slow):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            found = super().pull_messages(message_ids)
            if len(self.asked) == 1:
                raise Refused(status)
            return found

    replies = Punctual(Locked(Echo(), {1: 1})).send_and_receive(to(1), timeout=5)

    if status == 500:
        assert senders(replies) == [1]
    else:
        with pytest.raises(Refused):
            list(replies)


class Failing(Queues):
    """Of these pushes the SuperLink fails, counted from 1, and of every list of nodes but the first."""

    def __init__(self, lost: set[str], pushes: set[int], status: int = 500) -> None:
        super().__init__(lost)
        self.pushes, self.status, self.pushed, self.listed = pushes, status, 0, 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.pushed += 1
        if self.pushed in self.pushes:
            raise Refused(self.status)
        return super().push_messages(messages)

    def get_node_ids(self) -> Iterable[int]:
        self.listed += 1
        if self.listed > 1:
            raise Refused(self.status)
        return [1, 2]


@pytest.mark.usefixtures("_doubting")
@pytest.mark.parametrize(
    ("push", "sent"),
    [(2, ["train", "train", ARE_YOU_THERE, "train"]), (4, ["train", "train", ARE_YOU_THERE, ARE_YOU_THERE])],
    ids=["the first question", "the second sending"],
)
def test_a_superlink_that_fails_to_take_what_only_helps_ends_no_run(push: int, sent: list[str]) -> None:
    nodes = Failing({"m1", "m2"}, {push})

    replies = Punctual(nodes).send_and_receive(to(1, 2), timeout=0.5)

    assert senders(replies) == ([2] if push == 2 else [])
    assert [kind for _, _, kind in nodes.sent] == sent


@pytest.mark.usefixtures("_doubting")
@pytest.mark.parametrize("push", [2, 3])
def test_what_is_forbidden_is_not_passed_over(push: int) -> None:
    with pytest.raises(Refused):
        list(Punctual(Failing({"m1"}, {push}, status=403)).send_and_receive(to(1), timeout=0.5))


def test_a_push_that_a_round_needs_is_not_passed_over() -> None:
    with pytest.raises(Refused):
        list(Punctual(Failing(set(), {1})).send_and_receive(to(1), timeout=0.5))


def test_a_superlink_that_fails_to_list_its_nodes_has_those_that_it_had() -> None:
    grid = Punctual(Failing(set(), set()))

    assert [list(grid.get_node_ids()) for _ in range(2)] == [[1, 2], [1, 2]]
    grid = Punctual(Failing(set(), set(), status=403))
    grid.get_node_ids()
    with pytest.raises(Refused):
        grid.get_node_ids()


@pytest.mark.usefixtures("_doubting")
def test_only_the_newest_questions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punctual, "_MOST", 2)
    nodes = Queues({f"m{n}" for n in range(1, 100)})
    grid = Punctual(nodes)

    for _ in range(4):
        assert senders(grid.send_and_receive(to(1), timeout=0.2)) == []

    assert list(grid._doubted) == [name for name, _, kind in nodes.sent if kind == ARE_YOU_THERE][-2:]


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
