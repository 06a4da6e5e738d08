"""What every codec is, and how several work one behind the other on the flat form of a payload.

A codec turns a floating-point tensor ``x`` into named pieces, ``x#<codec>.<piece>``, and back. Whatever the decoder
needs is a piece, and so is counted: packed codes, ends, the shape. Ids, counts and masks pass untouched, and so does a
tensor whose pieces would take no fewer bytes than itself: coded knowledge is never larger than what it stands for.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError, expect_finite
from fedkd.knowledge.base import Meaning
from fedkd.knowledge.codecs._pieces import FLOATS, LARGEST

MEANINGS: tuple[Meaning, ...] = get_args(Meaning)

SEPARATOR = "#"
_KEEP_MEANING = ("delta.rows",)
"""Pieces that are still what the tensor was."""


@dataclass(frozen=True)
class Codec(ABC):
    """Turns one tensor into pieces, and back; equal codecs give equal bits.

    Attributes:
        name: as an experiment names it.
        suits: what it can code; anything else passes untouched.
        pieces: names of the pieces that it makes.
        leaves: whether some of them are floating point, for the next codec to code.
    """

    name: ClassVar[str]
    suits: ClassVar[tuple[Meaning, ...]] = MEANINGS
    pieces: ClassVar[tuple[str, ...]]
    leaves: ClassVar[bool] = False

    @abstractmethod
    def encode(self, name: str, tensor: Tensor, meaning: Meaning) -> dict[str, Tensor] | None:
        """Return the pieces of a finite tensor by name; None to leave it as it is.

        Raises:
            KnowledgeError: it cannot be coded.
        """

    @abstractmethod
    def decode(self, name: str, pieces: Mapping[str, Tensor], meaning: Meaning) -> Tensor:
        """Return the tensor that pieces stand for.

        Raises:
            KnowledgeError: they are not what :meth:`encode` makes.
        """


def repeated(codecs: Sequence[Codec]) -> tuple[Codec, Codec] | None:
    """Return the first codec that comes after one of its kind, and that one: what makes the same pieces is of a kind.

    It would code the pieces of the first, whose names the decoder could not tell apart, or find nothing to code.
    """
    for place, codec in enumerate(codecs):
        for before in codecs[:place]:
            if before.pieces == codec.pieces:
                return codec, before
    return None


def encode(
    codecs: Sequence[Codec], tensors: Mapping[str, Tensor], meanings: Mapping[str, Meaning]
) -> dict[str, Tensor]:
    """Return the coded form of named tensors: through the first codec, then what is still floating point, the next.

    Args:
        codecs: in the order of encoding.
        tensors: the flat form of a payload; not changed.
        meanings: of the floating-point tensors, by name.

    Raises:
        KnowledgeError: a tensor is not finite, is out of a codec's range, or has a name that codecs use; there are more
            than ``LARGEST`` numbers in all; or the codecs are none, or two of a kind.
    """
    _expect_codecs(codecs)
    _expect_not_too_many(tensors)
    for name in tensors if codecs else ():
        if SEPARATOR in name:
            raise KnowledgeError(f"{name}: expected a name without {SEPARATOR!r}, which codecs use")
    for codec in codecs:
        coded: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            coded |= _encoded(codec, name, tensor, _meaning(name, meanings))
        tensors = coded
    return dict(tensors)


def decode(
    codecs: Sequence[Codec], tensors: Mapping[str, Tensor], meanings: Mapping[str, Meaning]
) -> dict[str, Tensor]:
    """Return named tensors out of their coded form.

    Args:
        codecs: in the order of encoding.
        tensors: their coded form; not changed.
        meanings: of the floating-point tensors, by name.

    Raises:
        KnowledgeError: the tensors are not what :func:`encode` makes with these codecs.
    """
    _expect_codecs(codecs)
    for codec in reversed(codecs):
        mine = {f"{codec.name}.{piece}": piece for piece in codec.pieces}
        decoded: dict[str, Tensor | dict[str, Tensor]] = {}
        for path, tensor in tensors.items():
            name, _, tail = path.rpartition(SEPARATOR)
            if tail in mine and name:
                group = decoded.setdefault(name, {})
                if isinstance(group, Tensor):
                    raise KnowledgeError(f"{name}: expected it plain or in pieces, found both")
                group[mine[tail]] = tensor
            elif path in decoded:
                raise KnowledgeError(f"{path}: expected it plain or in pieces, found both")
            else:
                decoded[path] = tensor
        plain = {name: found for name, found in decoded.items() if isinstance(found, Tensor)}
        for name, found in decoded.items():
            if not isinstance(found, Tensor):
                plain[name] = _decoded(codec, name, found, _meaning(name, meanings))
                _expect_not_too_many(plain)
        tensors = {name: plain[name] for name in decoded}
    for path in tensors if codecs else ():
        if SEPARATOR in path:
            raise KnowledgeError(f"{path}: expected pieces of {[codec.name for codec in codecs]}, found others")
    return dict(tensors)


def _expect_codecs(codecs: Sequence[Codec]) -> None:
    if not isinstance(codecs, Sequence) or not all(isinstance(codec, Codec) for codec in codecs):
        todo = f"write ({codecs!r},)" if isinstance(codecs, Codec) else "make them by codecs_named"
        raise KnowledgeError(f"codecs: expected a sequence of codecs, found {type(codecs).__name__}; {todo}")
    if two := repeated(codecs):
        raise KnowledgeError(
            f"codecs: expected one of a kind, found {two[0].name!r} after {two[1].name!r}; leave it out"
        )


def _expect_not_too_many(tensors: Mapping[str, Tensor]) -> None:
    count = sum(tensor.numel() for tensor in tensors.values())
    if count > LARGEST:
        raise KnowledgeError(f"payload: expected at most {LARGEST} numbers where codecs are used, found {count}")


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of all tensors, coded or not, without the transport's framing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _meaning(name: str, meanings: Mapping[str, Meaning]) -> Meaning:
    plain, *pieces = name.split(SEPARATOR)
    return meanings.get(plain, "weights") if all(piece in _KEEP_MEANING for piece in pieces) else "weights"


def _encoded(codec: Codec, name: str, tensor: Tensor, meaning: Meaning) -> dict[str, Tensor]:
    if tensor.dtype not in FLOATS or not tensor.numel() or meaning not in codec.suits:
        return {name: tensor}
    expect_finite(name, tensor)
    pieces = codec.encode(name, tensor.detach().cpu().contiguous(), meaning)
    if pieces is None or num_bytes(pieces) >= num_bytes({name: tensor}):
        return {name: tensor}
    return {f"{name}{SEPARATOR}{codec.name}.{piece}": found for piece, found in pieces.items()}


def _decoded(codec: Codec, name: str, pieces: Mapping[str, Tensor], meaning: Meaning) -> Tensor:
    if set(pieces) != set(codec.pieces):
        raise KnowledgeError(f"{name}: expected the pieces {sorted(codec.pieces)}, found {sorted(pieces)}")
    return codec.decode(name, pieces, meaning)
