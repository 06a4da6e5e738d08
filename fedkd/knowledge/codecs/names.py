"""Codecs by name, as an experiment gives them: ``float16``, ``top-k:3``."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedkd.errors import UserError, unknown
from fedkd.knowledge.base import KINDS, Knowledge, Meaning
from fedkd.knowledge.bundle import Bundle
from fedkd.knowledge.codecs.base import MEANINGS, Codec, repeated
from fedkd.knowledge.codecs.distributions import ClassIndex, Distributions
from fedkd.knowledge.codecs.halves import BFloat16, Float16
from fedkd.knowledge.codecs.low_rank import LowRank
from fedkd.knowledge.codecs.sparse import TopK
from fedkd.knowledge.codecs.uniform import Quantize, QuantizeRows


@dataclass(frozen=True)
class _Entry:
    """How a codec is made of its parameter, an example of which is given; without one it takes none."""

    make: Callable[..., Codec]
    type: Callable[[str], float] | None
    example: str
    suits: tuple[Meaning, ...]
    description: str


def _entry(codec: type[Codec], kind: Callable[[str], float] | None, example: str, description: str) -> _Entry:
    return _Entry(codec, kind, f"{codec.name}{example}", codec.suits, description)


CODECS: Mapping[str, _Entry] = {
    "float16": _entry(Float16, None, "", "half precision; numbers above 65504 in size are refused"),
    "bfloat16": _entry(BFloat16, None, "", "the upper half of float32"),
    "quantize": _entry(Quantize, int, ":8", "1 to 8 bits per number, equal steps over each tensor's range"),
    "quantize-rows": _entry(
        QuantizeRows, int, ":4", "the same, over the range of each sample, class or output channel"
    ),
    "class-index": _entry(ClassIndex, None, "", "the most probable class (CFD at one bit)"),
    "distributions": _entry(Distributions, int, ":4", "1 to 8 bits per class, rows stay distributions (CFD)"),
    "top-k": _entry(
        TopK,
        int,
        ":3",
        "the largest numbers of each row; the rest of the mass is spread evenly, of Features and Prototypes it is 0",
    ),
    "low-rank": _entry(LowRank, float, ":0.95", "singular vectors that keep this share of a matrix's energy (FedKD)"),
}
"""Codecs that need no memory of earlier rounds, by name."""


def codecs_named(texts: Iterable[str], where: str) -> tuple[Codec, ...]:
    """Return codecs in the order given.

    Args:
        texts: ``name`` or ``name:parameter`` of each.
        where: key that holds them.

    Raises:
        UserError: there is no such codec, or it does not take this parameter.
    """
    return tuple(_codec(text, where) for text in texts)


def _codec(text: str, where: str) -> Codec:
    name, separator, parameter = text.partition(":")
    if name not in CODECS:
        raise unknown("codec", name, [entry.example for entry in CODECS.values()], where)
    entry = CODECS[name]
    try:
        if entry.type is None and separator:
            raise ValueError("it takes no parameter")
        return entry.make() if entry.type is None else entry.make(_parameter(entry.type, parameter))
    except ValueError as error:
        known = ", ".join(other.example for other in CODECS.values())
        expected = f"expected a codec such as {entry.example!r}, found {text!r} ({error})"
        raise UserError(f"{where}: {expected}; codecs: {known}.") from None


def _parameter(kind: Callable[[str], float], text: str) -> float:
    what = "a whole number" if kind is int else "a number"
    if not text:
        raise ValueError(f"{what} is missing behind the colon")
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {what}") from None


def expect_suited(codecs: Sequence[Codec], kinds: Iterable[type[Knowledge]], where: str, who: str) -> None:
    """Refuse codecs that would find nothing to code, and two of a kind.

    Args:
        codecs: in the order of encoding.
        kinds: types of the payloads that travel together.
        where: key that holds the codecs.
        who: who exchanges the payloads, for the message.

    Raises:
        UserError: names the codec, what it suits and what travels, or what has coded that already.
    """
    if two := repeated(codecs):
        after = "comes twice" if two[0].name == two[1].name else f"comes after {two[1].name!r}, which is of its kind"
        raise UserError(f"{where}: {two[0].name!r} {after}; leave the second out.")
    kinds = list(kinds)
    sent = {meaning for kind in kinds for meaning in (MEANINGS if kind in {Bundle, Knowledge} else (kind.meaning,))}
    if (idle := _idle(codecs, sent)) is None:
        return
    codec, before = codecs[idle], codecs[:idle]
    taken = [other.name for other in before if sent & set(codec.suits) & set(other.suits)]
    if not taken:
        names = " and ".join(kind.__name__ for kind in kinds)
        what = f"{codec.name!r} codes {_payloads(codec.suits)}, but {who} exchanges {names}"
        raise UserError(f"{where}: {what}; leave it out.")
    todo = "leave it out" if _idle([codec, *before], sent) is not None else f"put {codec.name!r} first"
    raise UserError(f"{where}: nothing is left for {codec.name!r}, {taken[0]!r} already codes it; {todo}.")


def _idle(codecs: Sequence[Codec], sent: set[Meaning]) -> int | None:
    """Return the place of the first codec that finds nothing to code in what is sent, or None."""
    left = set(sent)
    for place, codec in enumerate(codecs):
        mine = left & set(codec.suits)
        if not mine:
            return place
        left = (left - mine) | ({"weights"} if codec.leaves else set())
    return None


def payloads_suited(name: str) -> str:
    """Return the names of the payloads that a codec suits, for people."""
    return _payloads(CODECS[name].suits)


def _payloads(suits: tuple[Meaning, ...]) -> str:
    if set(suits) == set(MEANINGS):
        return "any payload"
    house = [
        k for k in KINDS.values() if k.__module__.startswith(f"{__package__.rpartition('.')[0]}.") and k is not Bundle
    ]
    return ", ".join(sorted(k.__name__ for k in house if k.meaning in suits))
