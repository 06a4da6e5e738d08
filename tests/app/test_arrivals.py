"""Which replies count, of each client one; and arrivals in the order of their keys, however they come."""

from collections.abc import Iterable, Iterator
from itertools import combinations, permutations

import pytest
from flwr.app import Error, Message

from fedkd.app import refusals
from fedkd.app.arrivals import NO_REPLY, Arrivals, in_order, too_few
from fedkd.app.client import EVALUATE, HELLO, TRAIN
from fedkd.app.wire import header_of, pack
from fedkd.flower_internals import ensure_task_identity
from fedkd.knowledge import KnowledgeError

KEYS = ["client-0", "client-1", "client-10", "client-2"]
ASKED = {1: "client-0", 2: "client-1"}

# --- which count


def reply(node: int, round_: int, phase: str = TRAIN, says: str = "fine", *, failed: bool = False) -> Message:
    """Return a node's answer to a message of a round."""
    ensure_task_identity()
    asked = Message(pack({"round": round_}), dst_node_id=node, message_type=phase, group_id=str(round_))
    if failed:
        return Message(Error(code=0, reason=says), reply_to=asked)
    return Message(pack({"round": round_, "says": says}), reply_to=asked)


class Round:
    """What a round has taken."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, int]] = []
        self.arrivals = Arrivals(lambda key, round_: self.counted.append((key, round_)))
        self.failed: dict[str, str] = {}

    def take(self, round_: int, replies: Iterable[Message], phase: str = TRAIN) -> list[tuple[str, str]]:
        """Return who counts, and with what; the others are in ``failed``."""
        self.failed = {}
        self.arrivals.begin_round(unfit=0)

        def read(message: Message, key: str) -> str:
            if message.has_error():
                raise KnowledgeError(str(message.error.reason))
            header = header_of(message.content)
            if (header["round"], header["says"]) != (round_, "fine"):
                raise KnowledgeError(f"{key} says {header['says']}")
            return f"{key} is fine"

        return list(self.arrivals.claims(phase, round_, ASKED, replies, read, self.failed))


def test_each_client_counts_once() -> None:
    taken = Round()

    assert taken.take(1, [reply(2, 1), reply(2, 1), reply(3, 1), reply(1, 1)]) == [
        ("client-1", "client-1 is fine"),
        ("client-0", "client-0 is fine"),
    ]
    assert taken.failed == {}
    assert taken.counted == [("client-1", 1), ("client-0", 1)]
    assert taken.arrivals.counted == {TRAIN: {"client-0": 1, "client-1": 1}, EVALUATE: {}}
    assert taken.arrivals.refused == {refusals.DUPLICATE: 1, refusals.UNASKED: 1}


def test_a_new_state_counts_before_the_next_reply_is_looked_at() -> None:
    taken = Round()
    seen: list[int] = []

    def replies() -> Iterator[Message]:
        for node in ASKED:
            yield reply(node, 1)
            seen.append(len(taken.counted))

    taken.take(1, replies())

    assert seen == [1, 2]


def test_who_is_silent_fails_or_says_nonsense_does_not_count() -> None:
    taken = Round()

    assert taken.take(1, [reply(1, 1, says="nonsense")]) == []
    assert taken.failed == {"client-0": "client-0 says nonsense", "client-1": NO_REPLY}
    assert taken.arrivals.refused == {refusals.INVALID: 1}

    assert taken.take(2, [reply(1, 2, says="no memory", failed=True), reply(2, 2)]) == [
        ("client-1", "client-1 is fine")
    ]
    assert taken.failed == {"client-0": "no memory"}
    assert taken.arrivals.refused == {}  # a client's word that it has failed is no bad reply
    assert taken.counted == [("client-1", 2)]


def test_after_a_bad_reply_a_good_one_counts() -> None:
    taken = Round()

    assert taken.take(1, [reply(1, 1, says="nonsense"), reply(1, 1)]) == [("client-0", "client-0 is fine")]
    assert taken.failed == {"client-1": NO_REPLY}


@pytest.mark.parametrize(
    ("counted_in", "says_round", "reason"),
    [(1, 2, refusals.LATE), (2, 2, refusals.REPLAYED), (2, 1, refusals.STALE), (2, 4, refusals.INVALID)],
)
def test_a_reply_to_another_round_is_refused_by_what_has_counted(counted_in: int, says_round: int, reason: str) -> None:
    taken = Round()
    taken.take(counted_in, [reply(1, counted_in)])

    assert taken.take(3, [reply(1, says_round)]) == []
    assert taken.arrivals.refused == {reason: 1}


def test_what_is_late_is_no_word_on_an_evaluation() -> None:
    taken = Round()
    taken.take(1, [reply(1, 1), reply(2, 1)])

    found = taken.take(2, [reply(1, 1), reply(2, 2, EVALUATE)], EVALUATE)

    assert found == [("client-1", "client-1 is fine")]
    assert taken.failed == {"client-0": NO_REPLY}
    assert taken.arrivals.refused == {refusals.REPLAYED: 1}
    assert taken.arrivals.counted == {TRAIN: {"client-0": 1, "client-1": 1}, EVALUATE: {"client-1": 2}}
    assert taken.counted == [("client-0", 1), ("client-1", 1)]  # an evaluation makes no new state


def test_an_error_of_an_earlier_round_is_late_and_its_client_may_still_answer() -> None:
    taken = Round()

    found = taken.take(2, [reply(1, 1, says="unavailable", failed=True), reply(1, 2)])

    assert found == [("client-0", "client-0 is fine")]
    assert taken.arrivals.refused == {refusals.LATE: 1}


def test_answers_to_a_hello_wait_for_the_next_look_and_replies_for_their_phase() -> None:
    arrivals = Arrivals(lambda key, round_: None)
    hello, train = reply(7, 0, HELLO), reply(1, 1)

    assert list(arrivals.sorted_out(TRAIN, [hello, train])) == [train]
    assert list(arrivals.sorted_out(HELLO, [])) == [hello]
    assert list(arrivals.sorted_out(HELLO, [train])) == []
    assert list(arrivals.sorted_out(TRAIN, [])) == [train]
    assert list(arrivals.sorted_out(TRAIN, [])) == []


def test_a_server_that_goes_on_knows_what_has_counted() -> None:
    taken = Round()
    taken.arrivals.go_on({"client-0": 4})

    taken.take(5, [reply(1, 4)])

    assert taken.arrivals.refused == {refusals.REPLAYED: 1}


def test_each_round_counts_anew_what_it_refuses() -> None:
    arrivals = Arrivals(lambda key, round_: None)

    arrivals.begin_round(unfit=2)
    assert arrivals.refused == {refusals.UNFIT: 2}
    arrivals.begin_round(unfit=0)
    assert arrivals.refused == {}


def test_what_several_failed_of_is_said_once() -> None:
    failed = {"b": "no memory", "a": "no memory", "c": NO_REPLY}

    assert too_few(3, 0, 1, failed) == f"round 3: no client sent a usable reply.\na, b:\nno memory\nc:\n{NO_REPLY}"
    assert too_few(3, 1, 2, {}).startswith("round 3: only 1 of at least 2 clients sent a usable reply.")


# --- in the order of their keys


def test_every_order_of_arrival_gives_the_same() -> None:
    for came in range(len(KEYS) + 1):
        for some in combinations(KEYS, came):
            for arrivals in permutations(some):
                assert list(in_order(reversed(KEYS), [(key, key) for key in arrivals])) == sorted(some)


def test_nothing_waits_longer_than_it_must() -> None:
    told: list[str] = []

    def arrivals() -> Iterator[tuple[str, str]]:
        for key in ("client-1", "client-0", "client-2", "client-10"):
            told.append(f"{key} comes")
            yield key, key

    for key in in_order(KEYS, arrivals()):
        told.append(f"{key} is taken")

    assert told == [
        *("client-1 comes", "client-0 comes", "client-0 is taken", "client-1 is taken"),
        *("client-2 comes", "client-10 comes", "client-10 is taken", "client-2 is taken"),
    ]


def test_who_never_comes_holds_up_the_others_until_the_end() -> None:
    assert list(in_order(KEYS, [("client-2", 2), ("client-1", 1)])) == [1, 2]
    assert list(in_order(KEYS, [])) == []
