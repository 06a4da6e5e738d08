"""What has been read is kept until its files change."""

import os
from pathlib import Path

import numpy as np
import pytest

from fedkd.data.sources import cache, load
from tests.data.sources.conftest import save, write_idx, write_image


def test_the_cache_does_not_outgrow_memory() -> None:
    assert cache.read.cache_info().maxsize == 2


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_npz_file_is_read_again(tmp_path: Path, change: str) -> None:
    file = tmp_path / "mine.npz"
    path = save(file, labels=np.array([0, 1]), x=np.zeros((2, 1)), classes=["a", "b"])
    before, status = load(path), file.stat()
    assert load(path) is before
    if change == "size":
        save(file, labels=np.array([0, 1, 1]), x=np.zeros((3, 1)), classes=["a", "b"])
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        save(file, labels=np.array([1, 1]), x=np.zeros((2, 1)), classes=["a", "b"])
        assert file.stat().st_size == status.st_size
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert load(path).labels.tolist() == ([0, 1, 1] if change == "size" else [1, 1])


def test_a_changed_image_folder_or_idx_file_is_read_again(tmp_path: Path, small_mnist: Path) -> None:
    write_image(tmp_path / "pets" / "cat" / "a.png", 51)
    assert len(load(str(tmp_path / "pets"))) == 1
    write_image(tmp_path / "pets" / "cat" / "b.png", 51)
    assert len(load(str(tmp_path / "pets"))) == 2
    assert load("mnist", root=str(small_mnist)).labels[0] == 5
    write_idx(small_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.array([8, 0, 4, 1], np.uint8))
    os.utime(small_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte", ns=(1, 1))
    assert load("mnist", root=str(small_mnist)).labels[0] == 8
