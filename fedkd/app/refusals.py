"""Replies that do not count, and why: late, duplicate, stale, replayed, unasked or invalid."""

from flwr.app import Message

from fedkd.app.wire import header_of
from fedkd.knowledge import KnowledgeError

UNASKED = "unasked"
"""From a node that nothing was asked of in this phase."""
DUPLICATE = "duplicate"
"""A further one, after one of the same client that counts."""
LATE = "late"
"""For an earlier round, which was closed without it."""
REPLAYED = "replayed"
"""For an earlier round, in which this client's reply has counted already."""
STALE = "stale"
"""For a round before the last one in which this client's reply has counted."""
INVALID = "invalid"
"""Anything else about it is not as agreed."""


def reason_of(message: Message, round_: int, counted: int) -> str | None:
    """Return why a reply that could not be accepted is refused; None if it is a client's word that it has failed.

    Args:
        message: the reply.
        round_: number of this round.
        counted: last round, before this one, in which a reply of this client has counted; 0 for none.
    """
    if message.has_error():
        return None
    try:
        said = header_of(message.content).get("round")
    except KnowledgeError:
        return INVALID
    if type(said) is not int or not 0 < said < round_:
        return INVALID
    if said > counted:
        return LATE
    return REPLAYED if said == counted else STALE
