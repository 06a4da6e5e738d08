"""Small photographs: signed digits, and ten kinds of things."""

from pathlib import Path

import torch

from fedkd.data.sources.arrays import as_images, as_labels, read_columns
from fedkd.data.sources.dataset import DataSet
from fedkd.data.sources.digits import TEN_DIGITS

SIGN_DIGITS = {"sign_digits_64.npz": "0fe93aa18536add7a6df051aa1e112aaccc59b00d15ffb5ea13d1c6a3fbf1979"}
CALTECH10 = {"caltech10_64.npz": "f25f02c7c1eae96c0f16b3b974cdc1a6ce9fb49f5dbe3e7edbfd030584f996a2"}


def read_sign_digits(folder: Path) -> DataSet:
    """Read ``image`` ``(N, 1, 64, 64)``: hands that sign the digits (Mavi 2020, arXiv:2011.08927).

    The people are not known, so one may be on both sides of the split.
    """
    shapes = {"images": (None, 64, 64), "labels": (None,), "is_test": (None,)}
    arrays = read_columns(folder / "sign_digits_64.npz", shapes)
    return DataSet(
        "sign-digits",
        {"image": as_images(arrays["images"])},
        as_labels(arrays["labels"]),
        TEN_DIGITS,
        official_test=torch.from_numpy(arrays["is_test"]),
    )


def read_caltech10(folder: Path) -> DataSet:
    """Read ``image`` ``(N, 3, 64, 64)``: the ten largest suitable classes of Caltech-101, at most 240 of each."""
    shapes = {"images": (None, 64, 64, 3), "labels": (None,), "is_test": (None,), "classes": (10,)}
    arrays = read_columns(folder / "caltech10_64.npz", shapes)
    return DataSet(
        "caltech10",
        {"image": as_images(arrays["images"])},
        as_labels(arrays["labels"]),
        tuple(map(str, arrays["classes"])),
        official_test=torch.from_numpy(arrays["is_test"]),
    )
