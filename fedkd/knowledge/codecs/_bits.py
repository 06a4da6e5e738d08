"""Whole numbers of few bits, packed without a gap; the first number and its lowest bit come first."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError

_Bytes = NDArray[np.uint8]

_WORD = 32
"""Bits of the widest number."""
_AT_ONCE = 2**16
"""Numbers whose bits are spread out at a time, a byte each; a multiple of 8, so that every lot ends with a byte."""


def bits_for(values: int) -> int:
    """Return how many bits tell ``values`` values apart: ``ceil(log2(values))``, 0 for one value or none."""
    return max(values - 1, 0).bit_length()


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that ``count`` numbers of ``bits`` bits take: ``ceil(count * bits / 8)``."""
    return -(-count * bits // 8)


def pack(numbers: Tensor, bits: int) -> Tensor:
    """Return whole numbers from 0 to ``2**bits - 1``, of any shape, as uint8 of shape ``(ceil(n * bits / 8),)``."""
    flat = numbers.detach().reshape(-1).cpu()
    lots = [_packed(lot.numpy().astype("<u4"), bits) for lot in flat.split(_AT_ONCE)]
    return torch.from_numpy(np.concatenate(lots))


def unpack(name: str, packed: Tensor, count: int, bits: int) -> Tensor:
    """Return ``count`` numbers out of what :func:`pack` made, int64, shape ``(count,)``.

    Raises:
        KnowledgeError: the bytes are too few or too many, or bits are set where no number is.
    """
    length = packed_bytes(count, bits)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (length,):
        expected = f"uint8 of shape ({length},), {count} numbers of {bits} bits"
        raise KnowledgeError(f"{name}: expected {expected}, found {packed.dtype} of shape {tuple(packed.shape)}")
    data: _Bytes = packed.cpu().numpy()
    in_last = count * bits % 8
    if in_last and data[-1] >> in_last:
        raise KnowledgeError(f"{name}: expected zeros behind the last number, found others")
    numbers = np.empty(count, dtype=np.int64)
    for start in range(0, count, _AT_ONCE):
        lot = numbers[start : start + _AT_ONCE]
        first = start * bits // 8
        lot[:] = _unpacked(data[first : first + packed_bytes(len(lot), bits)], len(lot), bits)
    return torch.from_numpy(numbers)


def _packed(words: NDArray[np.uint32], bits: int) -> _Bytes:
    rows = np.unpackbits(words.view(np.uint8).reshape(-1, _WORD // 8), axis=1, bitorder="little")[:, :bits]
    return np.packbits(rows.reshape(-1), bitorder="little")


def _unpacked(data: _Bytes, count: int, bits: int) -> NDArray[np.uint32]:
    rows = np.zeros((count, _WORD), dtype=np.uint8)
    rows[:, :bits] = np.unpackbits(data, count=count * bits, bitorder="little").reshape(count, bits)
    words: NDArray[np.uint32] = np.packbits(rows, axis=1, bitorder="little").view("<u4").reshape(count)
    return words
