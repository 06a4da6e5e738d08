"""What several codecs need: a tensor's form as a piece, tensors as rows, rows as distributions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LARGEST = 2**26
"""Most numbers that a coded payload may stand for: what a few bytes claim must not exhaust the receiver's memory."""


def form_of(tensor: Tensor) -> Tensor:
    """Return a tensor's type and shape, as a piece: int32, ``4 * (1 + number of dimensions)`` bytes."""
    return torch.tensor([FLOATS.index(tensor.dtype), *tensor.shape], dtype=torch.int32)


def read_form(name: str, form: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return the type and the shape that :func:`form_of` was given.

    Raises:
        KnowledgeError: it is none, or claims more than ``LARGEST`` numbers.
    """
    if form.dtype != torch.int32 or form.ndim != 1 or not len(form):
        raise KnowledgeError(
            f"{name}: form: expected int32 of one dimension, found {form.dtype} of {tuple(form.shape)}"
        )
    kind, *shape = form.tolist()
    if not 0 <= kind < len(FLOATS) or any(size < 1 for size in shape) or math.prod(shape) > LARGEST:
        expected = f"a floating-point type and a shape of 1 to {LARGEST} numbers"
        raise KnowledgeError(f"{name}: form: expected {expected}, found {form.tolist()}")
    return FLOATS[kind], tuple(shape)


def rows_of(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a tensor as a matrix: one row per sample, class or output channel; a vector is one."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def as_distributions(rows: Tensor) -> Tensor:
    """Return rows of float64 ``(N, C)`` without negative numbers, each with sum 1, or 0 if it has nothing else."""
    rows = rows.clamp(min=0)
    sums = rows.sum(-1, keepdim=True)
    return rows / torch.where(sums > 0, sums, torch.ones_like(sums))
