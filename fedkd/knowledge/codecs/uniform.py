"""Uniform quantisation: equal steps from the smallest number to the largest."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError, expect
from fedkd.knowledge.base import Meaning
from fedkd.knowledge.codecs._bits import pack, unpack
from fedkd.knowledge.codecs._pieces import as_distributions, form_of, read_form, rows_of
from fedkd.knowledge.codecs.base import Codec

MOST_BITS = 8


@dataclass(frozen=True)
class Quantize(Codec):
    """Codes of ``bits`` bits on ``2**bits`` levels between smallest and largest number of the tensor.

    ``|error| <= (largest - smallest) / (2 (2**bits - 1))``, and the rounding of the tensor's type on top; both ends are
    exact. Ties go to the even code. Distributions are scaled to sum 1 again.

    Attributes:
        bits: 1 to 8.
    """

    bits: int

    name = "quantize"
    pieces = ("codes", "ends", "form")

    def __post_init__(self) -> None:
        """Refuse a number of bits out of range."""
        if not isinstance(self.bits, int) or not 1 <= self.bits <= MOST_BITS:
            raise ValueError(f"bits: expected a whole number from 1 to {MOST_BITS}, found {self.bits!r}")

    def encode(self, name: str, tensor: Tensor, meaning: Meaning) -> dict[str, Tensor]:
        """Return codes in ``ceil(n * bits / 8)`` bytes, and the two ends (4 or 8 bytes each) of every range."""
        rows = tensor.double().reshape(self._ranges(tuple(tensor.shape)))
        ends = torch.stack(torch.aminmax(rows, dim=1), dim=1)
        low, width = ends[:, :1], ends[:, 1:] - ends[:, :1]
        if not torch.isfinite(width).all():
            raise KnowledgeError(
                f"{name}: {self.name}: expected a range that float64 can hold, found {ends.tolist()!s:.80}"
            )
        steps = (rows - low) * ((1 << self.bits) - 1) / torch.where(width > 0, width, torch.ones_like(width))
        stored = ends.to(_type_of_ends(tensor.dtype))  # exact: the ends are numbers of the tensor
        return {"codes": pack(steps.round(), self.bits), "ends": stored.view(torch.uint8), "form": form_of(tensor)}

    def decode(self, name: str, pieces: Mapping[str, Tensor], meaning: Meaning) -> Tensor:
        """Return the levels that the codes name."""
        dtype, shape = read_form(name, pieces["form"])
        rows, columns = self._ranges(shape)
        stored = _type_of_ends(dtype)
        expect(f"{name}: ends", pieces["ends"], (rows, 2 * stored.itemsize), torch.uint8)
        ends = pieces["ends"].contiguous().view(stored).double()
        if not torch.isfinite(ends).all() or (ends[:, 0] > ends[:, 1]).any():
            raise KnowledgeError(f"{name}: ends: expected finite ranges, smallest number first, found others")
        codes = unpack(f"{name}: codes", pieces["codes"], rows * columns, self.bits).reshape(rows, columns)
        share = codes.double() / ((1 << self.bits) - 1)
        values = ends[:, :1] * (1 - share) + ends[:, 1:] * share
        values = values.clamp(ends[:, :1], ends[:, 1:]).reshape(shape)
        return (as_distributions(values) if meaning == "probabilities" else values).to(dtype)

    def _ranges(self, shape: tuple[int, ...]) -> tuple[int, int]:
        rows, columns = rows_of(shape)
        return 1, rows * columns


@dataclass(frozen=True)
class QuantizeRows(Quantize):
    """As :class:`Quantize`, with a range of its own for each row: sample, class or output channel."""

    name = "quantize-rows"

    def _ranges(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return rows_of(shape)


def _type_of_ends(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
