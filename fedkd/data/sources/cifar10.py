"""CIFAR-10 (Krizhevsky 2009): as published, and as a lossy JPEG copy."""

import io
from pathlib import Path

import numpy as np
import torch

from fedkd.data.sources.arrays import Array, as_images, as_labels, read_columns
from fedkd.data.sources.checksums import verify
from fedkd.data.sources.dataset import DataSet
from fedkd.data.sources.files import unreadable

_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
BATCHES = tuple(f"cifar-10-batches-py/{file}" for file in (*_BATCHES, "batches.meta"))
JPEG = {"cifar10_jpeg.npz": "acf621ff12d492c28a928428ce0c139f5d2cc070e28ce716a057c20bfacc2137"}

_SHAPE = (32, 32, 3)
_SUBSETS = {"train": "subset_train_index", "test": "subset_test_index"}  # keys of each part's subset


def read_batches(folder: Path) -> DataSet:
    """Read the published files: ``image`` ``(N, 3, 32, 32)``, training images first.

    They are pickles, which could run code when they are opened: torchvision opens them, and only after it has compared
    their checksums with the published ones.

    Raises:
        UserError: a file is not the published one.
    """
    from torchvision.datasets import CIFAR10

    published = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    for file, checksum in published:  # torchvision does not say which file is another
        verify(folder / CIFAR10.base_folder / file, checksum, "md5")
    train, test = (CIFAR10(str(folder), train=part) for part in (True, False))
    return DataSet(
        "cifar10",
        {"image": as_images(np.concatenate([train.data, test.data]))},
        torch.tensor([*train.targets, *test.targets], dtype=torch.int64),
        tuple(train.classes),
        official_test=torch.arange(len(train.data) + len(test.data)) >= len(train.data),
    )


def read_jpeg(folder: Path, *, small: bool = False) -> DataSet:
    """Read the JPEG copy: ``image`` ``(N, 3, 32, 32)``, training images first, each part in the order of the classes.

    Args:
        folder: holds ``cifar10_jpeg.npz``.
        small: whether only the file's own subset is read, of which each class has the same share.

    Raises:
        UserError: the file is not laid out as expected, or an image in it cannot be read.
    """
    path = folder / "cifar10_jpeg.npz"
    columns = [f"{part}_{kind}" for part in ("train", "test") for kind in ("jpeg", "offsets", "labels")]
    arrays = read_columns(path, {"classes": (10,), **dict.fromkeys([*columns, *_SUBSETS.values()], (None,))})
    rows = {part: arrays[_SUBSETS[part]] if small else np.arange(len(arrays[f"{part}_labels"])) for part in _SUBSETS}
    images = [_decode(path, arrays[f"{part}_jpeg"], arrays[f"{part}_offsets"], rows[part]) for part in rows]
    return DataSet(
        "cifar10-jpeg-small" if small else "cifar10-jpeg",
        {"image": as_images(np.concatenate(images))},
        as_labels(np.concatenate([arrays[f"{part}_labels"][rows[part]] for part in rows])),
        tuple(map(str, arrays["classes"])),
        official_test=torch.arange(sum(map(len, rows.values()))) >= len(rows["train"]),
    )


def _pixels(content: bytes) -> Array:
    from PIL import Image

    image = np.asarray(Image.open(io.BytesIO(content), formats=("JPEG",)).convert("RGB"))
    if image.shape != _SHAPE:  # NumPy would repeat a single pixel
        raise ValueError(f"it is of shape {image.shape}")
    return image


def _decode(path: Path, stream: Array, offsets: Array, rows: Array) -> Array:
    """Return images, uint8 ``(n, 32, 32, 3)``; image ``i`` is the bytes ``offsets[i]`` to ``offsets[i + 1]``."""
    images = np.empty((len(rows), *_SHAPE), np.uint8)
    for position, row in enumerate(rows):
        try:
            content = stream[offsets[row] : offsets[row + 1]].tobytes()
            images[position] = _pixels(content)
        except (OSError, ValueError, IndexError) as error:
            raise unreadable(path, f"a JPEG image 32x32 in row {row}", error) from error
    return images
