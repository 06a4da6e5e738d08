"""The idx files of MNIST, and of data sets in its format.

Not read with torchvision's own reader: it wants these files unpacked, and unpacks them into their folder, which may be
shared and read-only; the .gz files can be read as they are.
"""

import gzip
import struct
from pathlib import Path

import numpy as np
import torch

from fedkd.data.sources.arrays import Array, as_images
from fedkd.data.sources.dataset import DataSet
from fedkd.data.sources.files import READ_ERRORS, unreadable

_IDX_BYTES = 0x08  # type code of unsigned bytes in an idx file
_IDX_FILES = tuple(
    f"{kind}-ubyte" for kind in ("train-images-idx3", "t10k-images-idx3", "train-labels-idx1", "t10k-labels-idx1")
)


def read_mnist(folder: Path, *, name: str, archive: str, classes: tuple[str, ...]) -> DataSet:
    """Read the four idx files of MNIST or of a data set in its format; training rows come first."""
    train_images, test_images, train_labels, test_labels = (
        _read_idx(as_it_is_or_packed(folder / file)) for file in idx_files(archive)
    )
    return DataSet(
        name,
        {"image": as_images(np.concatenate([train_images, test_images]))},
        torch.from_numpy(np.concatenate([train_labels, test_labels]).astype(np.int64)),
        classes,
        official_test=torch.arange(len(train_labels) + len(test_labels)) >= len(train_labels),
    )


def idx_files(archive: str) -> tuple[str, ...]:
    """Return the paths of the four files within the folder of a data set, without ``.gz``."""
    return tuple(f"{archive}/raw/{file}" for file in _IDX_FILES)


def is_idx(file: str) -> bool:
    """Tell by its name whether a file is an idx file of bytes."""
    return file.endswith("-ubyte")


def as_it_is_or_packed(path: Path) -> Path:
    """Return the path of an idx file, or that of its ``.gz`` if only this can be there."""
    return path if path.is_file() else path.with_name(f"{path.name}.gz")


def _read_idx(path: Path) -> Array:
    """Read an idx file of unsigned bytes: two zeros, type, number of dimensions, sizes (big-endian), content."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}I", raw, offset=4)
        if zeros or kind != _IDX_BYTES:
            raise ValueError("it does not begin like an idx file of bytes")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except READ_ERRORS as error:
        raise unreadable(path, "an idx file", error) from error
