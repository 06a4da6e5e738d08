"""Tiny files in the formats that are read."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from PIL import Image


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def small_mnist(tmp_path: Path) -> Path:
    """A folder like MNIST's with four training and two test images, some files packed and some not."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.arange(6 * 2 * 3, dtype=np.uint8).reshape(6, 2, 3) * 7
    write_idx(raw / "train-images-idx3-ubyte.gz", images[:4])
    write_idx(raw / "train-labels-idx1-ubyte", np.array([5, 0, 4, 1], np.uint8))
    write_idx(raw / "t10k-images-idx3-ubyte", images[4:])
    write_idx(raw / "t10k-labels-idx1-ubyte.gz", np.array([9, 2], np.uint8))
    return tmp_path


def save(path: Path, **arrays: ArrayLike) -> str:
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]
    return str(path)


def write_image(path: Path, level: int, size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)
