"""Small sets of handwritten digits."""

from pathlib import Path

import torch

from fedkd.data.sources.dataset import DataSet

TEN_DIGITS = tuple("0123456789")

_GREY_LEVELS = 16  # brightest value of 8x8 digits


def read_digits(_folder: Path) -> DataSet:
    """Read the digits that come with scikit-learn."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = torch.tensor(bundle.images, dtype=torch.float32).unsqueeze(1) / _GREY_LEVELS
    return DataSet("digits", {"image": images}, torch.tensor(bundle.target, dtype=torch.int64), TEN_DIGITS)
