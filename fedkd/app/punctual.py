"""Flower's grid, with an eye on what comes too late, or never: a round closes on time, its late replies are seen.

Flower's own ``send_and_receive`` forgets what it has asked when its time is out, so that nobody would ever know. And
Flower loses a message now and then, and tells nobody: a SuperNode that cannot fetch a message, or send its reply, drops
it and goes on. But it answers one message at a time, in the order in which they were sent. So a node that is silent for
long gets a small question; whoever answers that, and not what was asked before, has lost it, and is asked once more.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from time import monotonic, sleep
from typing import Any, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedkd.flower_internals import is_server_error, with_content

LOG = logging.getLogger("fedkd")
T = TypeVar("T")
ARE_YOU_THERE = "query.there"
"""Type of the small question; its answer is empty."""
_DOUBT_SECONDS = 120.0
"""Of silence, before a node is doubted. Of a node, or client half, that has died Flower tells after about 70."""
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
        self._unanswered: dict[str, Message] = {}  # without what they hold
        self._doubted: dict[str, str] = {}  # by name of the small question, which message it is about
        self._nodes: list[int] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages, and yield what is answered in time; and what was asked before and is answered only now."""
        asked = self._push(messages)
        start, doubted = monotonic(), False
        while asked:
            lost: list[str] = []
            for reply in self._pull([*self._unanswered, *self._doubted, *asked]):
                name = reply.metadata.reply_to_message_id
                if name in self._doubted:
                    lost.append(self._doubted.pop(name))
                    continue
                message = asked.pop(name, None) or self._unanswered.pop(name, None)
                yield reply if message is None else _of_its_node(reply, message)
            waited = monotonic() - start
            if not asked or (timeout is not None and waited > timeout):
                break
            asked |= self._again([name for name in lost if name in asked], asked)
            if waited > _DOUBT_SECONDS and not doubted:
                doubted = True
                self._doubt(asked)
            sleep(_POLL_SECONDS)
        self._remember(asked)

    def _push(self, messages: Iterable[Message]) -> dict[str, Message]:
        """Send messages; return them by Flower's names, without those that it did not take."""
        sent = list(messages)
        return {name: message for name, message in zip(self._grid.push_messages(sent), sent, strict=False) if name}

    def _pull(self, names: list[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        return _unless_it_fails("look for replies", lambda: list(self._grid.pull_messages(names)), [])

    def _doubt(self, asked: Mapping[str, Message]) -> None:
        """Ask the nodes that are silent whether they are there."""
        none: dict[str, Message] = {}
        for name, message in asked.items():
            question = Message(RecordDict(), dst_node_id=message.metadata.dst_node_id, message_type=ARE_YOU_THERE)
            found = _unless_it_fails("take a question", partial(self._push, [question]), none)
            self._doubted |= dict.fromkeys(found, name)
        self._doubted = dict([*self._doubted.items()][-_MOST:])

    def _again(self, lost: Iterable[str], asked: dict[str, Message]) -> dict[str, Message]:
        """Send once more what was lost; a reply to the first one would be late."""
        again = []
        for name in lost:
            message = asked.pop(name)
            self._remember({name: message})
            about = message.metadata
            what = about.group_id, about.message_type, about.dst_node_id
            LOG.warning("round %s: %s was lost on its way to node %d or back; it is sent again", *what)
            again.append(
                Message(
                    message.content,
                    dst_node_id=about.dst_node_id,
                    message_type=about.message_type,
                    group_id=about.group_id,
                )
            )
        return _unless_it_fails("take what was lost", partial(self._push, again), {}) if again else {}

    def _remember(self, asked: Mapping[str, Message]) -> None:
        """Note what may still be answered: without its tensors, which would be kept for nothing."""
        bare = {name: with_content(message, RecordDict()) for name, message in asked.items()}
        self._unanswered = dict([*self._unanswered.items(), *bare.items()][-_MOST:])

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that are there."""
        return self._grid.pull_messages(message_ids)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are there; where the SuperLink fails to say so, those that were there before."""
        self._nodes = _unless_it_fails("list its nodes", lambda: list(self._grid.get_node_ids()), self._nodes)
        return self._nodes

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


def _unless_it_fails(what: str, ask: Callable[[], T], otherwise: T) -> T:
    """Return what the SuperLink answers; if it has failed itself, something else: no reason to end a run.

    Only for what changes nothing, or is help that nobody counts on: whatever else was stored in part, who knows.
    """
    try:
        return ask()
    except Exception as error:
        if not is_server_error(error):
            raise
        LOG.warning("the SuperLink failed to %s; the run goes on: %s", what, str(error).partition("\n")[0])
        return otherwise


def _of_its_node(reply: Message, message: Message) -> Message:
    """Return a reply; if Flower has answered in a node's stead, with the reason why, as that of the node."""
    if reply.metadata.src_node_id == message.metadata.dst_node_id or not reply.has_error():
        return reply
    return Message(reply.error, reply_to=message)
