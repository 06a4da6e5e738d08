"""Knowledge as Flower records, and back: everything that crosses the wire crosses here.

A message holds a header (one ConfigRecord) and, if anything travels, the payload's flat form (one ArrayRecord). All
tensors of a payload are one array, whose bytes are a safetensors file: it knows every type of torch, its reader checks
what it claims, and a message of many tensors costs no more than one of few.
"""

from collections.abc import Mapping
from typing import Any, Final

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedkd.app.state import from_bytes, to_bytes
from fedkd.knowledge import Knowledge, KnowledgeError, kind

HEADER, PAYLOAD, EXTRA = "header", "payload", "extra"
TENSORS: Final = "tensors"
FORMAT: Final = "safetensors"

Header = dict[str, str | int | float | bool | list[int]]


Packed = dict[tuple[tuple[str, int], ...], tuple[dict[str, Tensor], ArrayRecord]]
"""Payloads that have been packed, by the identities of their tensors, which they keep alive."""


def pack(header: Mapping[str, Any], knowledge: Knowledge | None = None, packed: Packed | None = None) -> RecordDict:
    """Return the records of one message.

    Args:
        header: plain values; the payload's kind is added.
        knowledge: what travels; None for nothing.
        packed: payloads that other messages carry too: what many receive is packed once.
    """
    if knowledge is None:
        return RecordDict({HEADER: ConfigRecord({**header, "kind": ""})})
    config = ConfigRecord({**header, "kind": type(knowledge).__name__})
    tensors = knowledge.to_tensors()
    identity = tuple((name, id(tensor)) for name, tensor in tensors.items())
    packed = {} if packed is None else packed
    if identity not in packed:
        packed[identity] = tensors, to_arrays(tensors)
    return RecordDict({HEADER: config, PAYLOAD: packed[identity][1]})


def header_of(records: RecordDict) -> Header:
    """Return a message's header.

    Raises:
        KnowledgeError: it has none.
    """
    record = records.get(HEADER)
    if not isinstance(record, ConfigRecord):
        raise KnowledgeError(f"message: expected a record named {HEADER!r}, found {sorted(records)}")
    return dict(record)  # type: ignore[arg-type]


def number(header: Header, name: str) -> int:
    """Return a whole number from a header.

    Raises:
        KnowledgeError: there is none of that name.
    """
    value = header.get(name)
    if not isinstance(value, int):
        raise KnowledgeError(f"{name}: expected a whole number, found {value!r}")
    return value


def knowledge_of(records: RecordDict) -> Knowledge | None:
    """Return a message's payload, not yet held against any contract; None if nothing travels.

    Raises:
        KnowledgeError: the payload cannot be read.
    """
    name = header_of(records).get("kind", "")
    if not name:
        return None
    record = records.get(PAYLOAD)
    if not isinstance(record, ArrayRecord):
        raise KnowledgeError(f"message: expected a record named {PAYLOAD!r} for a payload of kind {name!r}, found none")
    return kind(str(name)).from_tensors(to_tensors(record))


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return tensors as Flower's record of arrays."""
    return as_arrays(to_bytes(tensors))


def as_arrays(data: bytes) -> ArrayRecord:
    """Return the bytes of a payload as Flower's record of arrays."""
    arrays = ArrayRecord()
    arrays[TENSORS] = Array(dtype="uint8", shape=(len(data),), stype=FORMAT, data=data)
    return arrays


def payload_bytes(arrays: ArrayRecord) -> bytes:
    """Return what :func:`as_arrays` was given."""
    return arrays[TENSORS].data


def to_tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Return what :func:`to_arrays` was given.

    Raises:
        KnowledgeError: the record holds something else, or is damaged.
    """
    array = arrays.get(TENSORS)
    if len(arrays) != 1 or array is None or array.stype != FORMAT:
        found = ", ".join(f"{name} ({array.stype})" for name, array in arrays.items()) or "nothing"
        raise KnowledgeError(f"payload: expected one array {TENSORS!r} ({FORMAT}), found {found:.80}")
    try:
        return from_bytes(array.data)
    except Exception as error:  # a damaged array has many ways to fail, and each is its sender's fault
        reason = f"{type(error).__name__}: {error}"
        raise KnowledgeError(f"payload: expected tensors as {FORMAT}, found something else: {reason}") from error
