"""Why a reply does not count; and that the server counts what it refuses."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedkd.app.evaluation import evaluate_messages, take_evaluations
from fedkd.app.loop import run
from fedkd.app.refusals import INVALID, LATE, REPLAYED, STALE, reason_of
from fedkd.app.server import ServerSide
from fedkd.app.wire import HEADER
from fedkd.config import Experiment
from fedkd.engine.local import LocalGrid
from fedkd.flower_internals import ensure_task_identity

SMALL: Mapping[str, Any] = {
    "strategy": "fedmd",
    "rounds": 4,
    "data": {"public": 40, "validation": 1300, "test": 40},
    "federation": {"clients": 3, "architectures": ("mlp",), "feature_width": 8},
    "train": {"local_epochs": 1},
    "strategies": {"fedmd": {"transfer_epochs": 1, "digest_epochs": 1}},
}
EXPERIMENT = Experiment(**SMALL)


def asked() -> Message:
    ensure_task_identity()
    return Message(RecordDict(), dst_node_id=1, message_type="train")


@pytest.mark.parametrize(
    ("said", "counted", "reason"),
    [
        (4, 2, LATE),  # round 5 now; its reply of round 2 counted, those of 3 and 4 did not come
        (3, 2, LATE),
        (1, 0, LATE),
        (2, 2, REPLAYED),
        (1, 2, STALE),
        (5, 4, INVALID),  # of this round: something else is wrong with it
        (6, 4, INVALID),
        (0, 4, INVALID),
        (-1, 4, INVALID),
        ("4", 2, INVALID),
        (True, 0, INVALID),
        (4.0, 2, INVALID),
        (None, 2, INVALID),
    ],
)
def test_why_a_reply_does_not_count(said: object, counted: int, reason: str) -> None:
    header = {} if said is None else {"round": said}
    reply = Message(RecordDict({HEADER: ConfigRecord(header)}), reply_to=asked())  # type: ignore[arg-type]
    assert reason_of(reply, "train", 5, {"train": counted, "evaluate": 5}) == reason


@pytest.mark.parametrize(
    ("said", "trained", "reason"), [(5, 4, LATE), (5, 5, REPLAYED), (4, 5, STALE), (6, 5, INVALID)]
)
def test_a_reply_to_a_message_of_another_type_is_of_its_own_round(said: int, trained: int, reason: str) -> None:
    reply = Message(RecordDict({HEADER: ConfigRecord({"round": said})}), reply_to=asked())
    assert reason_of(reply, "evaluate", 5, {"train": trained, "evaluate": 1}) == reason


def test_a_reply_without_header_is_invalid_and_a_failure_is_no_refusal() -> None:
    assert (
        reason_of(Message(RecordDict({HEADER: MetricRecord({"round": 1})}), reply_to=asked()), "train", 5, {})
        == INVALID
    )
    assert reason_of(Message(Error(code=0, reason="no disk"), reply_to=asked()), "train", 5, {}) is None


class Rounds:
    """A server, and what its clients have replied in each round."""

    def __init__(self) -> None:
        self.grid, self.side = LocalGrid(EXPERIMENT), ServerSide(EXPERIMENT)
        self.side.welcome(self.grid.send_and_receive(self.side.hello_messages([1, 2, 3])))
        self.asked: dict[int, list[Message]] = {}

    def replies(self, round_: int) -> list[Message]:
        self.asked[round_] = self.side.train_messages(round_)
        return sorted(self.grid.send_and_receive(self.asked[round_]), key=lambda reply: reply.metadata.src_node_id)

    def refused(self, round_: int, replies: Sequence[Message]) -> Mapping[str, int]:
        return self.side.take_replies(self.asked[round_], replies).refused


def test_the_server_counts_what_it_refuses() -> None:
    rounds = Rounds()
    first, second, third = rounds.replies(1)
    stranger = Message(first.content, reply_to=Message(RecordDict(), dst_node_id=99, message_type="train"))
    assert rounds.refused(1, [first, first, first, second, stranger]) == {"duplicate": 2, "unasked": 1}

    again = rounds.replies(2)
    assert rounds.refused(2, [first, *again[1:], third]) == {"replayed": 1, "duplicate": 1}
    assert rounds.side.versions == {"client-0": 1, "client-1": 2, "client-2": 2}

    more = rounds.replies(3)
    assert rounds.refused(3, [again[0], second, again[2], *more]) == {"late": 1, "stale": 1, "replayed": 1}
    assert rounds.side.versions == {"client-0": 3, "client-1": 3, "client-2": 3}

    assert rounds.refused(4, rounds.replies(4)) == {}


def test_an_error_of_an_earlier_round_is_late_and_says_nothing_about_this_one() -> None:
    rounds = Rounds()
    _, *others = rounds.replies(1)
    late = Message(Error(code=0, reason="of round 1"), reply_to=rounds.asked[1][0])
    assert rounds.refused(1, others) == {}

    _, *others = rounds.replies(2)
    record = rounds.side.take_replies(rounds.asked[2], [late, *others])

    assert record.refused == {"late": 1}
    assert record.failed == {"client-0": "no reply in time"}


def test_an_error_that_a_round_waits_for_is_its_reason_and_is_not_refused() -> None:
    rounds = Rounds()
    _, *others = rounds.replies(1)
    failed = Message(Error(code=0, reason="of round 1"), reply_to=rounds.asked[1][0])

    record = rounds.side.take_replies(rounds.asked[1], [failed, *others])

    assert record.refused == {}
    assert record.failed == {"client-0": "of round 1"}


def test_refusals_are_in_the_records_of_the_rounds() -> None:
    class Twice(LocalGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
            replies = list(super().send_and_receive(messages))
            return replies + [reply for reply in replies if reply.metadata.src_node_id == 2]

    experiment = EXPERIMENT.changed(rounds=2)
    finished = run(Twice(experiment), experiment)

    # one more reply, and one more evaluation, in every round
    assert [record.to_json()["refused"] for record in finished.rounds] == [{"duplicate": 2}] * 2
    assert not any(record.failed for record in finished.rounds)


def test_an_evaluation_of_an_earlier_round_is_replayed() -> None:
    rounds = Rounds()
    old: list[Message] = []
    for round_ in (1, 2):
        rounds.refused(round_, rounds.replies(round_))
        messages = evaluate_messages(rounds.side)
        replies = list(rounds.grid.send_and_receive(messages))
        take_evaluations(rounds.side, messages, [*old, *replies])
        old = replies[:1]
    assert rounds.side.arrivals.refused == {"replayed": 1}


@pytest.mark.parametrize("late", [True, False])
def test_an_evaluation_that_only_late_replies_came_to_is_no_failure(late: bool) -> None:
    rounds = Rounds()
    *others, third = rounds.replies(1)
    rounds.refused(1, others)

    found = take_evaluations(rounds.side, evaluate_messages(rounds.side), [third] if late else [])

    assert found.unmeasured == dict.fromkeys(["client-0", "client-1", "client-2"], "no reply in time")
    assert rounds.side.arrivals.refused == ({"late": 1} if late else {})
