"""Matrices as products of two thin ones.

Source: Wu et al., FedKD, arXiv:2108.13323; here the singular values are folded
into the left factor, no rank is 0, and a matrix whose factors would take no fewer bytes travels as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError, expect
from fedkd.knowledge.base import Meaning
from fedkd.knowledge.codecs._pieces import form_of, read_form, rows_of
from fedkd.knowledge.codecs.base import Codec


@dataclass(frozen=True)
class LowRank(Codec):
    """Singular vectors that keep a share of the energy, the sum of the squared singular values.

    ``||error||_F**2 <= (1 - energy) ||x||_F**2``, and the rounding of the tensor's type on top. A kernel
    ``(out, in, height, width)`` is coded as the matrix ``(out, in * height * width)``; vectors pass untouched.

    Attributes:
        energy: share that is kept, above 0, at most 1.
    """

    energy: float

    name = "low-rank"
    suits = ("logits", "rows", "weights")
    pieces = ("left", "right", "form")
    leaves = True

    def __post_init__(self) -> None:
        """Refuse a share out of range."""
        if not isinstance(self.energy, Real) or not 0 < self.energy <= 1:
            raise ValueError(f"energy: expected a share above 0, at most 1, found {self.energy!r}")

    def encode(self, name: str, tensor: Tensor, meaning: Meaning) -> dict[str, Tensor] | None:
        """Return ``U diag(s)`` of shape ``(m, r)`` and ``V`` of shape ``(r, n)``."""
        m, n = rows_of(tensor.shape)
        if min(m, n) < 2:  # noqa: PLR2004 - one row is its own factor
            return None
        u, s, v = torch.linalg.svd(tensor.double().reshape(m, n), full_matrices=False)
        rank = rank_for(s, self.energy)
        left, right = (u[:, :rank] * s[:rank]).to(tensor.dtype), v[:rank].to(tensor.dtype)
        return {"left": left.contiguous(), "right": right.contiguous(), "form": form_of(tensor)}

    def decode(self, name: str, pieces: Mapping[str, Tensor], meaning: Meaning) -> Tensor:
        """Return the product."""
        dtype, shape = read_form(name, pieces["form"])
        m, n = rows_of(shape)
        left, right = pieces["left"], pieces["right"]
        rank = left.shape[-1] if left.ndim else 0
        if not 1 <= rank <= min(m, n):
            raise KnowledgeError(f"{name}: left: expected a rank of 1 to {min(m, n)}, found {rank}")
        expect(f"{name}: left", left, (m, rank), dtype)
        expect(f"{name}: right", right, (rank, n), dtype)
        product = torch.zeros(m, n, dtype=torch.float64)
        for column, row in zip(left.double().T, right.double(), strict=True):  # in this order on every machine
            product += column[:, None] * row
        values = product.reshape(shape).to(dtype)
        if not torch.isfinite(values).all():
            raise KnowledgeError(f"{name}: expected a product that {dtype} can hold, found infinity")
        return values


def rank_for(singular_values: Tensor, energy: float) -> int:
    """Return the smallest rank, at least 1, that keeps this share of the energy."""
    kept = singular_values.square().cumsum(0)
    return int((kept < energy * kept[-1]).sum().clamp(max=len(kept) - 1)) + 1
