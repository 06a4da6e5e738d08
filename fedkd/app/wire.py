"""Knowledge as Flower records, and back: everything that crosses the wire crosses here.

A message holds a header (one ConfigRecord) and, if anything travels, the payload's flat form (one ArrayRecord). All
tensors of a payload are one array, whose bytes are a safetensors file: it knows every type of torch, its reader checks
what it claims, and a message of many tensors costs no more than one of few. Between our own grids no bytes are made.

The bytes end with their SHA-256, and so does the header, as its field ``seal``: what was damaged on the way, or put
together wrongly, is noticed. Neither proves who sent it; that is what TLS and the authentication of nodes are for.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final, final

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fedkd.app.state import expect_storable, from_bytes, to_bytes
from fedkd.flower_internals import config_record, with_content
from fedkd.knowledge import Knowledge, KnowledgeError
from fedkd.knowledge.codecs import Codec, decode_knowledge, encode_knowledge

HEADER, COMMON, PAYLOAD, EXTRA = "header", "common", "payload", "extra"
TENSORS: Final = "tensors"
FORMAT: Final = "safetensors+sha256"
SEAL: Final = "seal"

_LENGTH = 8
"""Bytes that say how long the header of a safetensors file is."""
_CHECKSUM = hashlib.sha256().digest_size
_LONGEST_REASON = 20_000
"""Characters of a client's traceback that are kept: the last ones."""

Header = dict[str, str | int | float | bool | list[int] | list[str]]


Packed = dict[tuple[tuple[str, int], ...], tuple[dict[str, Tensor], ArrayRecord]]
"""Payloads that have been packed, by the identities of their tensors, which they keep alive."""


def pack(
    header: Mapping[str, Any],
    knowledge: Knowledge | None = None,
    packed: Packed | None = None,
    codecs: Sequence[Codec] = (),
) -> RecordDict:
    """Return the records of one message.

    Args:
        header: plain values; the payload's kind is added.
        knowledge: what travels; None for nothing.
        packed: payloads that other messages carry too: what many receive is packed once.
        codecs: what the payload is coded with.

    Raises:
        KnowledgeError: the payload cannot be coded.
    """
    if knowledge is None:
        return RecordDict({HEADER: sealed({**header, "kind": ""})})
    config = sealed({**header, "kind": type(knowledge).__name__})
    tensors = knowledge.to_tensors()
    identity = tuple((name, id(tensor)) for name, tensor in tensors.items())
    packed = {} if packed is None else packed
    if identity not in packed:
        packed[identity] = tensors, to_arrays(encode_knowledge(codecs, knowledge) if codecs else tensors)
    return RecordDict({HEADER: config, PAYLOAD: packed[identity][1]})


def sealed(header: Mapping[str, Any]) -> ConfigRecord:
    """Return a header with its seal, as a record."""
    return config_record({**header, SEAL: _seal(header)})


def _seal(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(header.items())).encode()).hexdigest()


def expect_sealed(header: Header) -> None:
    """Refuse a header that is not as its sender made it.

    Raises:
        KnowledgeError: the seal is that of another one, or is missing.
    """
    if header.get(SEAL) != _seal({name: value for name, value in header.items() if name != SEAL}):
        raise KnowledgeError("message: expected a header that is as it was sent, found one that is not; send it again")


def expect_records(records: RecordDict, *names: str) -> None:
    """Refuse a message with other records than these.

    Raises:
        KnowledgeError: one is missing, or there is another one.
    """
    if set(records) != set(names):
        raise KnowledgeError(f"message: expected the records {sorted(names)}, found {sorted(records)!s:.200}")


def header_of(records: RecordDict, name: str = HEADER) -> Header:
    """Return a message's header, or another record of plain values.

    Raises:
        KnowledgeError: it has none.
    """
    record = records.get(name)
    if not isinstance(record, ConfigRecord):
        raise KnowledgeError(f"message: expected a record named {name!r}, found {sorted(records)!s:.200}")
    return dict(record.items())  # type: ignore[arg-type]  # of the record itself is several times as slow


def reason_in(message: Message) -> str:
    """Return why a client failed, as its error says it."""
    return (message.error.reason or "").strip()[-_LONGEST_REASON:]


def number(header: Header, name: str) -> int:
    """Return a whole number from a header.

    Raises:
        KnowledgeError: there is none of that name.
    """
    value = header.get(name)
    if type(value) is not int:
        raise KnowledgeError(f"{name}: expected a whole number, found {value!r:.80}")
    return value


def knowledge_of(records: RecordDict, codecs: Sequence[Codec] = ()) -> Knowledge | None:
    """Return a message's payload, not yet held against any contract; None if nothing travels.

    Args:
        records: of the message.
        codecs: what the payload was coded with.

    Raises:
        KnowledgeError: the payload cannot be read.
    """
    name = header_of(records).get("kind", "")
    if not name:
        return None
    record = records.get(PAYLOAD)
    if not isinstance(record, ArrayRecord):
        raise KnowledgeError(
            f"message: expected a record named {PAYLOAD!r} for a payload of kind {name!r:.80}, found none"
        )
    return decode_knowledge(codecs, str(name), to_tensors(record))


def payload_bytes(records: RecordDict, name: str = PAYLOAD) -> int:
    """Return the bytes of all tensors of a message's payload as they travel, coded if they are, without the framing.

    Args:
        records: of the message.
        name: of the record that holds the tensors, if it is not the payload's.
    """
    record = records.get(name)
    array = record.get(TENSORS) if isinstance(record, ArrayRecord) else None
    if array is None:
        return 0
    if isinstance(array, TensorArray):
        return sum(tensor.nbytes for tensor in array.tensors.values())
    return len(array.data) - _LENGTH - int.from_bytes(array.data[:_LENGTH], "little") - _CHECKSUM


@final
class TensorArray(Array):
    """Tensors as one of Flower's arrays, with bytes only if somebody asks: our own grids hand the tensors over."""

    __qualname__ = "Array"  # Flower sends the name along, and finds the receiver's class by it
    dtype, stype = "uint8", FORMAT

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep what the tensors hold now, in the order of their names.

        Raises:
            TypeError: one has a type that does not travel.
        """
        expect_storable(tensors)
        self.tensors = {name: _snapshot(tensor) for name, tensor in sorted(tensors.items())}

    @cached_property
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes of a safetensors file, and their SHA-256."""
        content = to_bytes(self.tensors)
        return content + hashlib.sha256(content).digest()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Number of bytes."""
        return (len(self.data),)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as bytes wherever nobody takes the tensors out."""
        return Array, (self.dtype, self.shape, self.stype, self.data)


def _snapshot(tensor: Tensor) -> Tensor:
    """Return what a tensor holds now, whatever its owner does to it later: nobody can change one made for inference."""
    if tensor.is_inference() and not (tensor.is_conj() or tensor.is_neg()):
        return tensor
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return tensors as Flower's record of arrays."""
    arrays = ArrayRecord()
    arrays[TENSORS] = TensorArray(tensors)
    return arrays


def without_tensors(message: Message) -> tuple[Message, dict[str, ArrayRecord]]:
    """Return a message without its records of tensors, and these by name."""
    if message.has_error():
        return message, {}
    records = {name: r for name, r in message.content.array_records.items() if isinstance(r.get(TENSORS), TensorArray)}
    rest = RecordDict({name: record for name, record in message.content.items() if name not in records})
    return with_content(message, rest), records


def tensors_in(record: ArrayRecord) -> dict[str, Tensor]:
    """Return the tensors of a record from :func:`without_tensors`, by name, as they lie there."""
    array = record[TENSORS]
    assert isinstance(array, TensorArray)  # noqa: S101 - said to the type checker
    return array.tensors


def to_tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Return what :func:`to_arrays` was given.

    Raises:
        KnowledgeError: the record holds something else, or is damaged.
    """
    array = arrays.get(TENSORS)
    if len(arrays) != 1 or array is None or array.stype != FORMAT:
        found = ", ".join(f"{name} ({array.stype})" for name, array in arrays.items()) or "nothing"
        raise KnowledgeError(f"payload: expected one array {TENSORS!r} ({FORMAT}), found {found:.80}")
    if isinstance(array, TensorArray):
        # Copies, as the bytes would be: whatever the receiver does to them is nobody else's concern.
        return {name: t.cpu().clone(memory_format=torch.contiguous_format) for name, t in array.tensors.items()}
    content, checksum = array.data[:-_CHECKSUM], array.data[-_CHECKSUM:]
    if (array.dtype, tuple(array.shape)) != ("uint8", (len(array.data),)):
        found = f"{array.dtype!s:.20} of shape {tuple(array.shape)!s:.60}"
        raise KnowledgeError(f"payload: expected {len(array.data)} bytes (uint8), found {found}")
    try:
        if hashlib.sha256(content).digest() != checksum:
            raise ValueError("its SHA-256 is another one")
        return from_bytes(content)
    except Exception as error:  # a damaged array has many ways to fail, and each is its sender's fault
        reason = f"{type(error).__name__}: {error}"
        raise KnowledgeError(f"payload: expected tensors as safetensors, found something else: {reason}") from error
