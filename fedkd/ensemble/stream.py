"""Averaging teachers one at a time, in memory for one teacher, in any order, and exactly.

A sum of floating-point numbers depends on their order, in float64 too. Integers do not: each number is rounded once to
a multiple of a fixed quantum, and the multiples are added as int64. What comes out depends on which teachers came, and
on nothing else; two streams that ran apart can be merged. It is also what secure aggregation needs.
"""

import math
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fedkd.checks import expect_finite, expect_integer, expect_tensor

_BITS = 62  # of int64, one for the sign and one to spare
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SMALLEST = 2.0**-100  # quantum whose inverse float32 can hold


class StreamedMean:
    """A weighted mean of tensors that arrive one by one: logits, probabilities, votes, or anything else of one shape.

    The range is fixed beforehand: numbers up to ``limit``, and weights that sum to at most ``capacity``. The quantum
    follows from it, ``2**-(62 - log2(limit) - log2(capacity))``, and the mean is at most half a quantum away from the
    exact one (before it is rounded to the type asked for). With the defaults, for logits up to 1,024 and 65,536
    teachers of weight 1, the quantum is 2**-36, 1.5e-11; with ``limit=1``, for probabilities, 2**-46, 1.4e-14.

    Args:
        shape: of each tensor, such as ``(N, C)``.
        limit: largest absolute value of a number; a power of two.
        capacity: largest sum of all weights; a power of two.

    Attributes:
        total: sum of weight times number in quanta, int64, of the given shape; with ``weight`` it is the whole state.
        weight: sum of the weights so far.
        quantum: what the numbers are rounded to multiples of.

    Raises:
        ValueError: limit or capacity are not powers of two, or leave no bit for the fraction.

    Formula: ``q sum_k w_k round(x_k / q) / sum_k w_k`` with the quantum ``q``.

    Source: fixed-point sums as in secure aggregation, Bonawitz et al. 2017.

    Example:
        >>> stream = StreamedMean((1, 2), limit=1)
        >>> stream.add(torch.tensor([[0.25, 0.75]]))
        >>> stream.add(torch.tensor([[0.75, 0.25]]), weight=3)
        >>> stream.mean()
        tensor([[0.6250, 0.3750]])
    """

    def __init__(self, shape: tuple[int, ...], *, limit: float = 1024, capacity: int = 65_536) -> None:
        for name, value in (("limit", limit), ("capacity", capacity)):
            if not (0 < value < math.inf and math.frexp(value)[0] == 0.5):  # noqa: PLR2004 - frexp of a power of two
                raise ValueError(f"{name}: expected a power of two, found {value}.")
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1, found {capacity}.")
        fraction = _BITS - round(math.log2(limit)) - round(math.log2(capacity))
        if not 1 <= fraction <= 1000:  # noqa: PLR2004 - beyond it, the quantum is not a normal float64
            raise ValueError(
                f"limit and capacity: expected a product of at most 2**{_BITS - 1}, found {limit} and {capacity}."
            )
        self.limit = float(limit)
        self.capacity = int(capacity)
        self.quantum = 2.0**-fraction
        self.total = torch.zeros(shape, dtype=torch.int64)
        self.weight = 0

    def add(self, values: Tensor, *, weight: int = 1) -> None:
        """Add one teacher.

        Args:
            values: what it says, floating-point, of the stream's shape.
            weight: how much it counts: an integer of 1 or more, such as its number of samples.

        Raises:
            ValueError: the shape, the type or the weight does not fit, or a number is not finite or above the limit;
                the stream is then as it was before.
        """
        expect_tensor("values", values)
        if tuple(values.shape) != tuple(self.total.shape):
            raise ValueError(f"values: expected shape {tuple(self.total.shape)}, found {tuple(values.shape)}.")
        if not values.is_floating_point():
            raise ValueError(f"values: expected floating-point numbers, found {values.dtype}.")
        weight = _whole(weight)
        self._expect_room("weight", weight)
        if values.numel():
            low, high = (bound.item() for bound in values.detach().aminmax())
            if not max(-low, high) <= self.limit:  # holds for NaN, too
                expect_finite("values", values)
                found = max(-low, high)
                raise ValueError(
                    f"values: expected numbers up to {self.limit:g}, found {found}; choose a larger limit."
                )
        # A product with a power of two is exact, in float32 as well where it can hold that power.
        narrow = values.dtype != torch.float64 and self.quantum > _SMALLEST
        scaled = values.detach().to(torch.float32 if narrow else torch.float64) * (1 / self.quantum)
        quanta = scaled.round_().to(self.total)
        self.total += quanta if weight == 1 else quanta.mul_(weight)
        self.weight += weight

    def merge(self, other: Self) -> None:
        """Add all teachers of another stream.

        Raises:
            ValueError: the other stream has another shape or range, or the weights would exceed the capacity.
        """
        mine, others = ((tuple(s.total.shape), s.limit, s.capacity) for s in (self, other))
        if mine != others:
            raise ValueError(f"other: expected a stream of shape, limit and capacity {mine}, found {others}.")
        if other.weight:
            self._expect_room("other", other.weight)
            self.total += other.total
            self.weight += other.weight

    def mean(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the mean so far, of the stream's shape; of logits it is logits, of probabilities probabilities.

        Raises:
            ValueError: no teacher has come yet.
        """
        if not self.weight:
            raise ValueError("stream: expected at least one teacher, found none.")
        # The quotient in whole quanta and the rest apart: the total may have more bits than float64.
        whole = torch.div(self.total, self.weight, rounding_mode="floor")
        rest = (self.total - whole * self.weight).double() / self.weight
        return ((whole.double() + rest) * self.quantum).to(dtype)

    def _expect_room(self, name: str, weight: int) -> None:
        expect_integer(name, weight, 1)
        if self.weight + weight > self.capacity:
            raise ValueError(
                f"{name}: expected weights that sum to at most {self.capacity}, found {self.weight} and {weight} more; "
                "choose a larger capacity."
            )


def _whole(weight: Any) -> Any:  # noqa: ANN401 - an integer of any library; the rest is refused as it is
    """Return an integer of NumPy or torch as Python's."""
    integer = isinstance(weight, np.integer) or (
        isinstance(weight, Tensor) and weight.ndim == 0 and weight.dtype in _INTEGERS
    )
    return int(weight) if integer else weight
