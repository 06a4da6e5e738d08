"""NumPy arrays as they come out of files, and the tensors that they become."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.data.sources.files import READ_ERRORS, unreadable
from fedkd.errors import UserError

Array = NDArray[Any]

IMAGE_RANKS = (3, 4)  # (N, height, width) and (N, height, width, channels)

_BYTE_MAX = 255  # brightest value of an 8-bit image


def open_npz(path: Path) -> dict[str, Array]:
    """Read all arrays; pickled objects are refused, since opening them would run code from the file."""
    try:
        # Opened here because NumPy, given a path, forgets to close a damaged file.
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):  # NumPy would advise to trust it
                raise ValueError("it is no archive of arrays")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
    except READ_ERRORS as error:
        raise unreadable(path, "an .npz file of plain arrays", error) from error


def read_columns(path: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, Array]:
    """Read the arrays of an ``.npz`` file whose layout is known.

    Args:
        path: the file.
        shapes: of each array that must be there, by key; None for a size that may be any.

    Raises:
        UserError: the file cannot be read, or an array is missing or of another shape.
    """
    arrays = open_npz(path)
    for key, shape in shapes.items():
        found = arrays[key].shape if key in arrays else None
        if found is None or not _fits(found, shape):
            expected, told = str(shape).replace("None", "N"), "none" if found is None else found
            raise UserError(f"{path}: {key!r}: expected shape {expected}, found {told}; replace the file.")
    return arrays


def _fits(found: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(found) == len(shape) and all(b in (a, None) for a, b in zip(found, shape, strict=True))


def as_labels(array: Array) -> Tensor:
    """Turn whole numbers ``(N,)`` into int64."""
    return torch.from_numpy(array.astype(np.int64))


def as_images(array: Array) -> Tensor:
    """Turn bytes ``(N, H, W)`` or ``(N, H, W, C)`` into float32 ``(N, C, H, W)`` in [0, 1]."""
    channels_last = array if array.ndim == max(IMAGE_RANKS) else array[..., np.newaxis]
    images = np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2), dtype=np.float32)
    return torch.from_numpy(images).div_(_BYTE_MAX)
