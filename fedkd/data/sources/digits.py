"""Small sets of handwritten digits."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedkd.data.sources.arrays import Array, as_labels, read_columns
from fedkd.data.sources.dataset import DataSet

TEN_DIGITS = tuple("0123456789")

OPTDIGITS = {"optdigits.npz": "a19a66105998150fbc8f5a418b55bb54ed874ca8676f4dd3bc84b89e2b618d1c"}
PENDIGITS = {"pendigits.npz": "fe9ecf6449b632382ebeb480bd21f8967af66dd346ac1105a4fc9df991058888"}
MFEAT = {"mfeat.npz": "fe92412ea9c52b6b79ef855ccbf0cc5aa5c444bf622fb0931bed879041b69be9"}
SEMEION = {"semeion.npz": "7574d0f77655d058108512ae5ba9cf379099a5e836bb72c8f04736ad174ca1db"}

_GREY_LEVELS = 16  # brightest value of 8x8 digits: pixels of a 4x4 block that are set
_MFEAT_LEVELS = 6  # brightest value of mfeat's pixels: those of a 2x3 block
_PEN_RANGE = 100  # largest coordinate of a pen
_OPTDIGITS_TRAIN = 1934  # first rows of the bitmaps, written by other people than the rest
_PENDIGITS_TRAIN = 7494  # the same of the strokes


def read_digits(_folder: Path) -> DataSet:
    """Read the digits that come with scikit-learn."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = torch.tensor(bundle.images, dtype=torch.float32).unsqueeze(1) / _GREY_LEVELS
    return DataSet("digits", {"image": images}, torch.tensor(bundle.target, dtype=torch.int64), TEN_DIGITS)


def read_optdigits(folder: Path) -> DataSet:
    """Read the digits that are there in both qualities: ``image8`` ``(N, 1, 8, 8)`` and ``image32`` ``(N, 1, 32, 32)``.

    Each grey value is the share of a 4x4 block of the bitmap that is set.
    """
    shapes = {"images8": (None, 8, 8), "images32": (None, 32, 32), "labels": (None,)}
    arrays = read_columns(folder / "optdigits.npz", shapes)
    count = len(arrays["images32"])  # the first rows; the others have no bitmap
    views = {
        "image8": _as_grey(arrays["images8"][:count], _GREY_LEVELS),
        "image32": _as_grey(arrays["images32"], 1),
    }
    labels = as_labels(arrays["labels"][:count])
    return DataSet("optdigits", views, labels, TEN_DIGITS, torch.arange(count) >= _OPTDIGITS_TRAIN)


def read_pendigits(folder: Path) -> DataSet:
    """Read ``stroke`` ``(N, 2, 8)``: x and y of eight points along the stroke, in [0, 1]."""
    arrays = read_columns(folder / "pendigits.npz", {"strokes": (None, 8, 2), "labels": (None,)})
    points = np.ascontiguousarray(arrays["strokes"].transpose(0, 2, 1), dtype=np.float32) / _PEN_RANGE
    labels = as_labels(arrays["labels"])
    test = torch.arange(len(labels)) >= _PENDIGITS_TRAIN
    return DataSet("pendigits", {"stroke": torch.from_numpy(points)}, labels, TEN_DIGITS, test)


def read_mfeat(folder: Path) -> DataSet:
    """Read ``pixel`` ``(N, 1, 16, 15)`` and four views of vectors, as published: each in its own scale.

    These are ``factors`` ``(N, 216)``, ``karhunen`` ``(N, 64)``, ``morphological`` ``(N, 6)`` and ``zernike``
    ``(N, 47)``. There is no official split.
    """
    vectors = {"factors": (None, 216), "karhunen": (None, 64), "morphological": (None, 6), "zernike": (None, 47)}
    arrays = read_columns(folder / "mfeat.npz", {"pixel": (None, 16, 15), "labels": (None,), **vectors})
    views = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in vectors}
    views["pixel"] = _as_grey(arrays["pixel"], _MFEAT_LEVELS)
    return DataSet("mfeat", views, as_labels(arrays["labels"]), TEN_DIGITS)


def read_semeion(folder: Path) -> DataSet:
    """Read ``image`` ``(N, 1, 16, 16)``, black and white; there is no official split."""
    arrays = read_columns(folder / "semeion.npz", {"images": (None, 16, 16), "labels": (None,)})
    return DataSet("semeion", {"image": _as_grey(arrays["images"], 1)}, as_labels(arrays["labels"]), TEN_DIGITS)


def _as_grey(images: Array, brightest: int) -> Tensor:
    """Turn whole numbers ``(N, height, width)`` into float32 ``(N, 1, height, width)`` in [0, 1]."""
    return torch.from_numpy(images.astype(np.float32)).unsqueeze(1) / brightest
