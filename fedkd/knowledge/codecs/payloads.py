"""Whole payloads in coded form, bundles included."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from fedkd.knowledge.base import KINDS, Knowledge, Meaning, kind
from fedkd.knowledge.bundle import Bundle
from fedkd.knowledge.codecs.base import SEPARATOR, Codec, decode, encode


def encode_knowledge(codecs: Sequence[Codec], knowledge: Knowledge) -> dict[str, Tensor]:
    """Return the coded flat form of a payload; without codecs, the flat form itself.

    Raises:
        KnowledgeError: it cannot be coded, or the codecs are none, or two of a kind.
    """
    tensors = knowledge.to_tensors()
    return tensors if codecs in ((), []) else encode(codecs, tensors, meanings_of(type(knowledge).__name__, tensors))


def decode_knowledge(codecs: Sequence[Codec], name: str, tensors: dict[str, Tensor]) -> Knowledge:
    """Return a payload, not yet held against any contract, out of its coded flat form.

    Args:
        codecs: those that it was coded with.
        name: of its kind.
        tensors: the coded flat form.

    Raises:
        KnowledgeError: there is no such kind, or the tensors are not what the codecs make of one.
    """
    found = kind(name)
    return found.from_tensors(tensors if codecs in ((), []) else decode(codecs, tensors, meanings_of(name, tensors)))


def meanings_of(name: str, fields: Iterable[str]) -> dict[str, Meaning]:
    """Return what the numbers in each field of a payload are, given its kind's name; a piece counts as its field."""
    return {field: _meaning_of(name, field) for field in {path.split(SEPARATOR)[0] for path in fields}}


def _meaning_of(name: str, field: str) -> Meaning:
    while name == Bundle.__name__:
        head, _, field = field.partition("/")
        name = head.partition(":")[2]
    return KINDS[name].meaning if name in KINDS else "weights"
