"""The user's own data as a folder of images."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from fedkd.data.sources.arrays import Array, as_images
from fedkd.data.sources.dataset import DataSet
from fedkd.data.sources.files import expect_classes, folders, unreadable
from fedkd.errors import UserError


def read_image_folder(path: Path) -> DataSet:
    """Read a folder of images as :func:`fedkd.data.sources.load` describes it."""
    parts = [_list_images(part) for part in folders(path)]
    classes = parts[0][0]
    expect_classes(path / "test", parts[-1][0], classes)
    files = [file for _, samples in parts for file in samples]
    return DataSet(
        path.name,
        {"image": as_images(_read_images(path, [file for file, _ in files]))},
        torch.tensor([label for _, label in files], dtype=torch.int64),
        classes,
        official_test=torch.arange(len(files)) >= len(parts[0][1]) if len(parts) > 1 else None,
    )


def _list_images(folder: Path) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    """Return the class names and ``(file, label)`` of each image, both in torchvision's order."""
    from torchvision.datasets import ImageFolder

    try:
        listing = ImageFolder(str(folder))
    except OSError as error:
        raise unreadable(folder, "an image folder <class>/<file>", error) from error
    return tuple(listing.classes), listing.samples


def _read_images(folder: Path, files: list[str]) -> Array:
    """Read colour images of one size, uint8, shape ``(N, height, width, 3)``."""
    from torchvision.datasets.folder import default_loader

    images = []
    for file in files:
        try:
            images.append(np.asarray(default_loader(file)))
        except OSError as error:
            raise unreadable(Path(file), "an image", error) from error
    sizes = Counter(f"{image.shape[1]}x{image.shape[0]}" for image in images)
    if len(sizes) > 1:
        found = ", ".join(f"{size} ({count} files)" for size, count in sizes.most_common(5))
        raise UserError(f"{folder}: expected images of one size, found width x height {found}; resize them.")
    return np.stack(images)
