"""Whole numbers of few bits, packed without a gap; the first number and its lowest bit come first."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError

_WORD = 32
"""Bits of the widest number."""


def bits_for(values: int) -> int:
    """Return how many bits tell ``values`` values apart: ``ceil(log2(values))``, 0 for one value or none."""
    return max(values - 1, 0).bit_length()


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that ``count`` numbers of ``bits`` bits take: ``ceil(count * bits / 8)``."""
    return -(-count * bits // 8)


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Return whole numbers from 0 to ``2**bits - 1``, of any shape, as uint8 of shape ``(ceil(n * bits / 8),)``."""
    flat: NDArray[np.uint32] = numbers.detach().reshape(-1).cpu().numpy().astype("<u4")
    rows = np.unpackbits(flat.view(np.uint8).reshape(-1, _WORD // 8), axis=1, bitorder="little")[:, :bits]
    return torch.from_numpy(np.packbits(rows.reshape(-1), bitorder="little"))


def unpack(name: str, packed: Tensor, count: int, bits: int) -> Tensor:
    """Return ``count`` numbers out of what :func:`pack` made, int64, shape ``(count,)``.

    Raises:
        KnowledgeError: the bytes are too few or too many, or bits are set where no number is.
    """
    length = packed_bytes(count, bits)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (length,):
        expected = f"uint8 of shape ({length},), {count} numbers of {bits} bits"
        raise KnowledgeError(f"{name}: expected {expected}, found {packed.dtype} of shape {tuple(packed.shape)}")
    flags = np.unpackbits(packed.cpu().numpy(), bitorder="little")
    if flags[count * bits :].any():
        raise KnowledgeError(f"{name}: expected zeros behind the last number, found others")
    rows = np.zeros((count, _WORD), dtype=np.uint8)
    rows[:, :bits] = flags[: count * bits].reshape(count, bits)
    words = np.packbits(rows, axis=1, bitorder="little").view("<u4").reshape(count)
    return torch.from_numpy(words.astype(np.int64))
