"""NumPy arrays as they come out of files, and the tensors that they become."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.data.sources.files import READ_ERRORS, unreadable

Array = NDArray[Any]

IMAGE_RANKS = (3, 4)  # (N, height, width) and (N, height, width, channels)

_BYTE_MAX = 255  # brightest value of an 8-bit image


def open_npz(path: Path) -> dict[str, Array]:
    """Read all arrays; pickled objects are refused, since opening them would run code from the file."""
    try:
        # Opened here because NumPy, given a path, forgets to close a damaged file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (*READ_ERRORS, TypeError) as error:  # TypeError: a lone array (.npy) under this name
        raise unreadable(path, "an .npz file of plain arrays", error) from error


def as_images(array: Array) -> Tensor:
    """Turn bytes ``(N, H, W)`` or ``(N, H, W, C)`` into float32 ``(N, C, H, W)`` in [0, 1]."""
    channels_last = array if array.ndim == max(IMAGE_RANKS) else array[..., np.newaxis]
    images = np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2), dtype=np.float32)
    return torch.from_numpy(images).div_(_BYTE_MAX)
