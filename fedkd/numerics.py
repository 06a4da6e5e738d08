"""Small numerical parts that losses, measures and connectors share: exact where they can be, and finite everywhere.

Their gradients are finite too. All run inside ``torch.func.vmap`` and ``torch.func.grad``, and none writes into its
arguments.
"""

import math

import torch
from torch import Tensor

_LOW_PRECISION = (torch.float16, torch.bfloat16)
_SMALLEST_NORM = 1e-12


def wide(value: Tensor) -> Tensor:
    """Return a half-precision tensor in float32, and any other as it is: losses compute in float32 or wider."""
    return value.float() if value.dtype in _LOW_PRECISION else value


def products(first: Tensor, second: Tensor) -> Tensor:
    """Return the inner products ``(..., N, M)`` of rows ``(..., N, d)`` and ``(..., M, d)``, even inside autocast.

    Autocast would round the factors of a matrix product to half precision, and with them what a loss compares.
    """
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.transpose(-1, -2)


def logits_of(probabilities: Tensor) -> Tensor:
    """Return logarithms of probabilities, finite also where one is 0; softmax takes them back."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def root(values: Tensor) -> Tensor:
    """Return the square root of values that are not negative; its gradient is zero, not infinite, where they are 0."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1.0).sqrt(), 0.0)


def unit(values: Tensor, dim: int = -1) -> Tensor:
    """Scale vectors to length one; a vector of length zero stays zero and gets no gradient.

    Args:
        values: shape ``(..., d, ...)``.
        dim: the dimension along which the vectors lie.
    """
    squares = values.square().sum(dim=dim, keepdim=True)
    nonzero = squares > _SMALLEST_NORM**2
    return torch.where(nonzero, values / torch.where(nonzero, squares, 1.0).sqrt(), 0.0)


def distances(values: Tensor) -> Tensor:
    """Return the Euclidean distances ``(N, N)`` of all pairs of rows ``(N, d)``.

    They come from differences, not from inner products: those would cancel, so that equal rows seemed to differ.
    """
    return torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")


def pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average maps down to another size as adaptive pooling does, with a gradient that is deterministic on CUDA too.

    Args:
        maps: shape ``(N, C, H, W)``.
        size: height and width to reach.

    Returns:
        Maps of shape ``(N, C, *size)``.
    """
    for axis, length in zip((-2, -1), size, strict=True):
        if maps.shape[axis] != length:
            weights = _averaging(maps.shape[axis], length).to(device=maps.device, dtype=maps.dtype)
            maps = products(maps.transpose(axis, -1), weights).transpose(axis, -1)
    return maps


def to_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Pool maps ``(N, C, H, W)`` and ``(N, D, H', W')`` to the smaller height and the smaller width of the two."""
    height, width = (min(sides) for sides in zip(first.shape[-2:], second.shape[-2:], strict=True))
    return pooled(first, (height, width)), pooled(second, (height, width))


def _averaging(inputs: int, outputs: int) -> Tensor:
    """Return the matrix ``(outputs, inputs)`` whose rows average neighbouring, where needed overlapping, entries."""
    rows = [range(row * inputs // outputs, math.ceil((row + 1) * inputs / outputs)) for row in range(outputs)]
    return torch.tensor([[(column in row) / len(row) for column in range(inputs)] for row in rows], dtype=torch.float64)
