"""All contact with modules of Flower that are not public, in one file.

Written against flwr 1.41. Flower is imported inside the functions, so that importing this module costs nothing.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.serverapp import Grid

_SERVER_ERROR = 500
_SCALARS = {str, int, float, bool, bytes}


def ensure_task_identity(run_id: int = 0, node_id: int = 0) -> None:
    """Give this process a task identity, without which Flower refuses to create a ``Message``.

    An identity that Flower or an earlier call has set is left as it is.

    Args:
        run_id: run that messages created here belong to.
        node_id: node that messages created here come from.
    """
    from flwr.supercore.task_identity import TaskIdentity

    for name, value in {"task_id": 0, "run_id": run_id, "node_id": node_id}.items():
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:  # Flower's way to say: not set
            setattr(TaskIdentity, name, value)


def config_record(values: Mapping[str, Any]) -> "ConfigRecord":
    """Return plain values as Flower's record, without its check of each, which would be most of a small message's cost.

    Args:
        values: texts, numbers, truth values and bytes, or lists of one type of these, by names that are texts.

    Raises:
        TypeError: one of them does not travel.
    """
    from flwr.app import ConfigRecord

    kinds = {type(value) for value in values.values()}
    if not (kinds <= _SCALARS | {list} and all(_alike(value) for value in values.values() if type(value) is list)):
        return ConfigRecord(dict(values))  # which says what is wrong
    record = ConfigRecord()
    record.__dict__["_data"].update(values)
    return record


def _alike(values: list[Any]) -> bool:
    kinds = {type(value) for value in values}
    return len(kinds) <= 1 and kinds <= _SCALARS


def with_content(message: "Message", content: "RecordDict") -> "Message":
    """Return a message with the same metadata and other content."""
    from flwr.app import Message

    return Message(content, metadata=message.metadata)  # type: ignore[call-overload, no-any-return]


def is_server_error(error: Exception) -> bool:
    """Whether the SuperLink has answered that it failed itself (HTTP 500 and above), as when its database is locked."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return isinstance(status, int) and status >= _SERVER_ERROR


def is_simulation(grid: "Grid") -> bool:
    """Whether a grid's nodes are Flower's simulated ones, which work on several messages to one of them at a time."""
    from flwr.superlink.grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)
