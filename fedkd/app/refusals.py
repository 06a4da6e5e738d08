"""Replies that do not count, and why: late, duplicate, stale, replayed, unasked, unfit or invalid."""

from collections.abc import Mapping

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
UNFIT = "unfit"
"""To a hello, from a node that is none of this run's, says other things than before, or is one too many."""
INVALID = "invalid"
"""Anything else about it is not as agreed."""


def is_late_error(message: Message, phase: str, round_: int) -> bool:
    """Whether a message is the word of a client, or of Flower in its stead, that it has failed at something earlier.

    It has no header that says so; but Flower sends back what the message was that it answers.

    Args:
        message: the reply.
        phase: type of the messages that are being answered.
        round_: number of this round.
    """
    answered = message.metadata.message_type, message.metadata.group_id
    return message.has_error() and answered != (phase, str(round_))


def reason_of(message: Message, phase: str, round_: int, counted: Mapping[str, int]) -> str | None:
    """Return why a reply that could not be accepted is refused; None if it is a client's word that it has failed.

    Args:
        message: the reply.
        phase: type of the messages that are being answered.
        round_: number of this round.
        counted: last round in which a reply of this client to a message of a type has counted, by the type.
    """
    if message.has_error():
        return None
    try:
        said = header_of(message.content).get("round")
    except KnowledgeError:
        return INVALID
    type_ = message.metadata.message_type
    earlier = round_ if type_ == phase else round_ + 1  # this round's messages of another type were sent before
    if type(said) is not int or not 0 < said < earlier:
        return INVALID
    last = counted.get(type_, 0)
    if said > last:
        return LATE
    return REPLAYED if said == last else STALE
