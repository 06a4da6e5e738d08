"""Flower's grid, with an eye on what comes too late: a round closes on time, and its late replies are seen and refused.

Flower's own ``send_and_receive`` forgets what it has asked when its time is out, so that nobody would ever know.
"""

from collections.abc import Iterable, Iterator
from time import monotonic, sleep
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

_POLL_SECONDS = 0.25
_MOST = 10_000
"""Unanswered messages that are remembered: the newest."""


class Punctual(Grid):
    """A grid whose replies to earlier messages come with those to later ones.

    Args:
        grid: Flower's.
    """

    def __init__(self, grid: Grid) -> None:
        """Begin with nothing unanswered."""
        self._grid = grid
        self._unanswered: dict[str, None] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages, and yield what is answered in time; and what was asked before and is answered only now."""
        asked = dict.fromkeys(name for name in self._grid.push_messages(messages) if name)
        deadline = monotonic() + (float("inf") if timeout is None else timeout)
        while asked:
            for reply in self._grid.pull_messages([*self._unanswered, *asked]):
                name = reply.metadata.reply_to_message_id
                self._unanswered.pop(name, None)
                asked.pop(name, None)
                yield reply
            if not asked or monotonic() > deadline:
                break
            sleep(_POLL_SECONDS)
        self._unanswered = dict.fromkeys([*self._unanswered, *asked][-_MOST:])

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that are there."""
        return self._grid.pull_messages(message_ids)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are there."""
        return self._grid.get_node_ids()

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to a node."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def set_run(self, run: Any) -> None:  # noqa: ANN401 - Flower's type is not public
        """Say which run this is."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:  # noqa: ANN401
        """Flower's run information."""
        return self._grid.run
