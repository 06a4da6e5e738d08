"""What comes back from the clients: which replies count, why others do not, and in which order they are taken."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TypeVar

from flwr.app import Message

from fedkd.app import refusals
from fedkd.app.client import EVALUATE, HELLO, TRAIN
from fedkd.app.wire import reason_in
from fedkd.knowledge import KnowledgeError
from fedkd.wording import gist

LOG = logging.getLogger("fedkd")
T = TypeVar("T")
OnCounted = Callable[[str, int], None]
NO_REPLY = "no reply in time"
"""Why a client that was asked and is silent does not count."""


class Arrivals:
    """Which replies count: of each client one per round and type of message, if it says what was agreed.

    Attributes:
        counted: round of the last reply that counts, by type of message and client key.
        refused: number of replies of this round that did not count, by reason.
    """

    def __init__(self, on_counted: OnCounted) -> None:
        """Begin without any.

        Args:
            on_counted: called with client key and round as soon as a client's new state counts.
        """
        self.counted: dict[str, dict[str, int]] = {TRAIN: {}, EVALUATE: {}}
        self.refused: dict[str, int] = {}
        self._on_counted = on_counted
        self._waiting: list[Message] = []

    def begin_round(self, unfit: int) -> None:
        """Count anew what is refused.

        Args:
            unfit: answers to the hellos before the round that were refused.
        """
        self.refused = {refusals.UNFIT: unfit} if unfit else {}

    def go_on(self, versions: Mapping[str, int]) -> None:
        """Take up where an earlier process was: these rounds' replies have counted, by client key."""
        self.counted[TRAIN] = dict(versions)

    def claims(
        self,
        phase: str,
        round_: int,
        asked: Mapping[int, str],
        replies: Iterable[Message],
        read: Callable[[Message, str], T],
        failed: dict[str, str],
    ) -> Iterator[tuple[str, T]]:
        """Yield the client key of each reply that counts, and what it says, as they come.

        Args:
            phase: type of the messages.
            round_: number of this round.
            asked: client keys by the nodes that were asked.
            replies: what comes.
            read: returns what a reply says, given its client's key; raises KnowledgeError if it must not count.
            failed: is told why the other clients' replies do not count.
        """
        failed |= dict.fromkeys(asked.values(), NO_REPLY)
        for message in self.sorted_out(phase, replies):
            key = asked.get(message.metadata.src_node_id)
            if refusals.is_late_error(message, phase, round_):
                self._refuse(refusals.LATE)
                LOG.warning("round %d: what was asked before has failed: %s", round_, reason_in(message)[-200:])
                continue
            if key is None or key not in failed:
                self._refuse(refusals.UNASKED if key is None else refusals.DUPLICATE)
                LOG.warning("round %d: a reply that nobody asked for, or a second one, is not counted", round_)
                continue
            try:
                said = read(message, key)
            except KnowledgeError as error:
                counted = {type_: rounds.get(key, 0) for type_, rounds in self.counted.items()}
                reason = refusals.reason_of(message, phase, round_, counted)
                self._refuse(reason)
                if phase == TRAIN or reason in {None, refusals.INVALID}:  # what is late is no word on an evaluation
                    failed[key] = str(error)
                LOG.warning("round %d, %s: %s does not count: %s", round_, phase, key, str(error).splitlines()[-1])
                continue
            self.counted[phase][key] = round_
            if phase == TRAIN:
                self._on_counted(key, round_)
            del failed[key]
            yield key, said

    def sorted_out(self, phase: str, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies for a phase: answers to hellos are for the next look, all others for a phase of a round."""
        waiting, self._waiting = self._waiting, []
        for message in chain(waiting, replies):
            if (message.metadata.message_type == HELLO) == (phase == HELLO):
                yield message
            else:
                self._waiting.append(message)

    def _refuse(self, reason: str | None) -> None:
        if reason is not None:
            self.refused[reason] = self.refused.get(reason, 0) + 1


def in_order(keys: Iterable[str], arrivals: Iterable[tuple[str, T]]) -> Iterator[T]:
    """Yield what arrives in the sorted order of the keys, each as soon as all before it have come.

    Args:
        keys: of all that may arrive.
        arrivals: keys and what comes under them, each at most once; what follows one that never comes waits for the
            end.
    """
    awaited, early = deque(sorted(keys)), dict[str, T]()
    for key, arrival in arrivals:
        early[key] = arrival
        while awaited and awaited[0] in early:
            yield early.pop(awaited.popleft())
    yield from (early[key] for key in awaited if key in early)


def too_few(round_: int, count: int, fewest: int, failed: Mapping[str, str]) -> str:
    """Say once what several clients failed of, with the first one's traceback."""
    alike: dict[str, list[str]] = {}
    for key, reason in sorted(failed.items()):
        alike.setdefault(gist(reason), []).append(key)
    causes = "\n".join(f"{', '.join(keys)}:\n{failed[keys[0]].strip()}" for keys in alike.values())
    few = f"only {count} of at least {fewest} clients sent a usable reply" if count else "no client sent a usable reply"
    return f"round {round_}: {few}.\n{causes}"
