"""Constrained quantisation: rows that are distributions stay distributions, at one bit as at eight.

Source: Sattler et al., CFD, arXiv:2012.00632, codes soft labels so; one bit leaves the most probable class.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError
from fedkd.knowledge.base import Meaning
from fedkd.knowledge.codecs._bits import bits_for, pack, unpack
from fedkd.knowledge.codecs._pieces import form_of, read_form
from fedkd.knowledge.codecs.base import Codec

FLOOR = 2.0**-30
"""What a probability of 0 is taken for where its logarithm is needed: 0 itself would make a logit of minus infinity."""
MOST_BITS = 8


@dataclass(frozen=True)
class ClassIndex(Codec):
    """One class per row, the most probable one (of equals the first), in ``ceil(log2 C)`` bits.

    It is decoded to the logits of a distribution that has all its mass there, but for ``FLOOR`` in every other class.
    """

    name = "class-index"
    suits = ("logits",)
    pieces = ("index", "form")

    def encode(self, name: str, tensor: Tensor, meaning: Meaning) -> dict[str, Tensor] | None:
        """Return the indices of N rows in ``ceil(N * ceil(log2 C) / 8)`` bytes; None unless it is a matrix."""
        if tensor.ndim != 2:  # noqa: PLR2004 - samples and classes
            return None
        index = tensor.argmax(-1)
        return {"index": pack(index, bits_for(tensor.shape[-1])), "form": form_of(tensor)}

    def decode(self, name: str, pieces: Mapping[str, Tensor], meaning: Meaning) -> Tensor:
        """Return logits: 0 for the class, ``log FLOOR`` for the others."""
        dtype, shape = _matrix_form(name, pieces["form"])
        index = unpack(f"{name}: index", pieces["index"], shape[0], bits_for(shape[1]))
        if (index >= shape[1]).any():
            raise KnowledgeError(f"{name}: index: expected classes below {shape[1]}, found {int(index.max())}")
        return _log_of(torch.zeros(shape, dtype=torch.float64).scatter(1, index[:, None], 1.0)).to(dtype)


@dataclass(frozen=True)
class Distributions(Codec):
    """Rows ``n / L`` with whole ``n >= 0``, ``sum n = L = 2**bits - 1``: of all these the nearest to the row.

    Every ``L p`` is rounded down, and what is missing to ``L`` goes to the largest remainders, of equals to the first
    class: nearest in every p-norm, ``|error| < 1 / L`` in every class. Logits are coded as their softmax, and decoded
    to its logarithm, with ``FLOOR`` for 0. A row of zeros (a class that is absent) stays one.

    Attributes:
        bits: 1 to 8; at 1 bit every row is its most probable class, for which :class:`ClassIndex` takes fewer bytes.
    """

    bits: int

    name = "distributions"
    suits = ("logits", "probabilities")
    pieces = ("parts", "form")

    def __post_init__(self) -> None:
        """Refuse a number of bits out of range."""
        if not isinstance(self.bits, int) or not 1 <= self.bits <= MOST_BITS:
            raise ValueError(f"bits: expected a whole number from 1 to {MOST_BITS}, found {self.bits!r}")

    @property
    def _whole(self) -> int:
        return (1 << self.bits) - 1

    def encode(self, name: str, tensor: Tensor, meaning: Meaning) -> dict[str, Tensor] | None:
        """Return the parts of N rows in ``ceil(N * C * bits / 8)`` bytes; None unless it is a matrix."""
        if tensor.ndim != 2:  # noqa: PLR2004 - samples and classes
            return None
        rows = tensor.double()
        parts = largest_remainders(rows.softmax(-1) if meaning == "logits" else rows, self._whole)
        return {"parts": pack(parts, self.bits), "form": form_of(tensor)}

    def decode(self, name: str, pieces: Mapping[str, Tensor], meaning: Meaning) -> Tensor:
        """Return logits or probabilities, as they were."""
        dtype, shape = _matrix_form(name, pieces["form"])
        parts = unpack(f"{name}: parts", pieces["parts"], shape[0] * shape[1], self.bits).reshape(shape)
        sums = parts.sum(-1)
        if not ((sums == self._whole) | ((sums == 0) & (meaning == "probabilities"))).all():
            raise KnowledgeError(
                f"{name}: parts: expected the sum {self._whole} in every row, found {sums.tolist()!s:.80}"
            )
        rows = parts.double() / self._whole
        return (_log_of(rows) if meaning == "logits" else rows).to(dtype)


def largest_remainders(rows: Tensor, whole: int) -> Tensor:
    """Return rows of shares ``(N, C)`` as whole numbers with the sum ``whole``; a row of zeros stays one."""
    shares = rows.clamp(min=0)
    sums = shares.sum(-1, keepdim=True)
    exact = shares / torch.where(sums > 0, sums, torch.ones_like(sums)) * whole
    parts = exact.floor()
    missing = (whole - parts.sum(-1, keepdim=True)) * (sums > 0)
    order = (exact - parts).argsort(dim=-1, descending=True, stable=True)
    extra = torch.arange(rows.shape[-1]).expand(rows.shape) < missing
    return (parts + torch.zeros_like(parts).scatter(-1, order, extra.double())).long()


def _log_of(rows: Tensor) -> Tensor:
    return rows.clamp(min=FLOOR).log()


def _matrix_form(name: str, form: Tensor) -> tuple[torch.dtype, tuple[int, int]]:
    dtype, shape = read_form(name, form)
    if len(shape) != 2:  # noqa: PLR2004 - samples and classes
        raise KnowledgeError(f"{name}: form: expected a shape (N, C), found {shape}")
    return dtype, shape
