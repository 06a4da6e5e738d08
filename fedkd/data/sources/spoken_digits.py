"""Digits by ear and eye: recordings, each beside a handwritten digit and, while they last, a hand that signs it.

The three come from different people: what binds them is the label.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from fedkd.data.sources import fsdd, pictures
from fedkd.data.sources.dataset import DataSet
from fedkd.data.sources.digits import TEN_DIGITS
from fedkd.data.sources.idx import idx_files, read_mnist

FILES = {
    **{f"fsdd/{file}": checksum for file, checksum in fsdd.FILES.items()},
    **{f"sign-digits/{file}": checksum for file, checksum in pictures.SIGN_DIGITS.items()},
    **{f"mnist/{file}": "" for file in idx_files("MNIST")},
}


def read_spoken_digits(folder: Path) -> DataSet:
    """Read ``audio`` ``(N, 1, 8000)``, ``image`` ``(N, 1, 28, 28)`` and ``sign`` ``(N, 1, 64, 64)``.

    Training recordings are paired with training images, test recordings with test images, and no image is used twice.
    There are fewer signs than recordings: a recording without one has zeros, and ``present["sign"]`` says so.

    Args:
        folder: holds the folders ``fsdd``, ``mnist`` and ``sign-digits``.
    """
    recordings = fsdd.read_fsdd(folder / "fsdd")
    eyes = {
        "image": read_mnist(folder / "mnist", name="mnist", archive="MNIST", classes=TEN_DIGITS),
        "sign": pictures.read_sign_digits(folder / "sign-digits"),
    }
    views, present = dict(recordings.views), {}
    for name, seen in eyes.items():
        partner = partners(recordings, seen, name)
        there = partner >= 0
        views[name] = torch.zeros(len(recordings), *seen.views["image"].shape[1:])
        views[name][there] = seen.views["image"][partner[there]]
        if not there.all():
            present[name] = there
    return DataSet(
        "spoken-digits",
        views,
        recordings.labels,
        TEN_DIGITS,
        official_test=recordings.official_test,
        groups=recordings.groups,
        present=present,
        rates=recordings.rates,
    )


def partners(heard: DataSet, seen: DataSet, view: str) -> Tensor:
    """Return for each recording the row of an image of its label on its side of the split, or -1 if none is left.

    Args:
        heard: the ``N`` recordings.
        seen: the images.
        view: name of the view that they become; another name gives another pairing.

    Returns:
        Rows of ``seen``, int64, shape ``(N,)``, none of them twice.
    """
    partner = torch.full((len(heard),), -1)
    for test in (False, True):
        for label in range(len(heard.classes)):
            recordings = _shuffled(f"{view} of recording", _rows(heard, label, test=test))
            images = _shuffled(view, _rows(seen, label, test=test))
            count = min(len(recordings), len(images))
            partner[recordings[:count]] = torch.tensor(images[:count], dtype=torch.int64)
    return partner


def _rows(data: DataSet, label: int, *, test: bool) -> list[int]:
    tests = torch.zeros(len(data), dtype=torch.bool) if data.official_test is None else data.official_test
    rows: list[int] = torch.nonzero((data.labels == label) & (tests == test)).flatten().tolist()
    return rows


def _shuffled(purpose: str, rows: list[int]) -> list[int]:
    """Order rows by a hash: the same order on every machine and in every version of any library."""
    return sorted(rows, key=lambda row: hashlib.sha256(f"spoken-digits {purpose} {row}".encode()).digest())
