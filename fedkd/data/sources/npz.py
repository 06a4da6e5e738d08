"""The user's own data as an ``.npz`` file of plain arrays."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedkd.data.sources.arrays import IMAGE_RANKS, Array, as_images, open_npz
from fedkd.data.sources.dataset import SPLITS, UNLABELLED, DataSet
from fedkd.errors import UserError

LOG = logging.getLogger("fedkd")
_CHANNELS = (1, 2, 3, 4)  # grey, grey + alpha, colour, colour + alpha
_COLOURS = 3
_PRESENT, _RATE = "_present", "_rate"  # endings of keys that say more about a view


def read_npz(path: Path) -> DataSet:
    """Read a file as :func:`fedkd.data.sources.load` describes it."""
    arrays = open_npz(path)
    if "labels" not in arrays:
        raise UserError(f"{path}: expected key 'labels' (class numbers), found {_keys(arrays)}; add or rename it.")
    labels = _as_labels(path, arrays.pop("labels"))
    classes, is_test, groups, ids, split = (
        arrays.pop(key, None) for key in ("classes", "is_test", "groups", "ids", "split")
    )
    for key, column in (("is_test", is_test), ("groups", groups), ("ids", ids), ("split", split)):
        if column is not None and column.shape != labels.shape:
            raise UserError(
                f"{path}: {key!r}: expected shape {tuple(labels.shape)} as the labels, found {column.shape}."
            )
    present, rates = _pop_present(path, arrays, labels), _pop_rates(path, arrays)
    views = {name: array for name, array in arrays.items() if _is_view(array)}
    _tell_of_notes(path, {name: array for name, array in arrays.items() if name not in views})
    for name, array in views.items():
        if len(array) != len(labels):
            expected = f"expected {len(labels)} rows, one per label"
            raise UserError(f"{path}: {name!r}: {expected}, found {len(array)}; align it, or leave it out.")
    if not views:
        raise UserError(f"{path}: expected a view ({len(labels)}, ...), found {_keys(arrays)}; add one.")
    for name, there in present.items():
        views[name][~there.numpy()] = 0  # whatever stands there, such as NaN
    given_ids = None if ids is None else _as_ids(path, ids)
    order = slice(None) if given_ids is None else given_ids.argsort()
    return DataSet(
        path.stem,
        {name: _as_view(f"{path}: {name!r}", array)[order] for name, array in views.items()},
        labels[order],
        _default_classes(path, labels) if classes is None else tuple(map(str, classes.reshape(-1))),
        None if is_test is None else _as_flags(path, is_test)[order],
        None if groups is None else _as_groups(groups)[order],
        {name: there[order] for name, there in present.items()},
        rates,
        None if given_ids is None else given_ids[order],
        None if split is None else _as_splits(path, split)[order],
    )


def _pop_present(path: Path, arrays: dict[str, Array], labels: Tensor) -> dict[str, Tensor]:
    """Take out the ``<view>_present`` arrays; one without its view is an error, since it would vanish silently."""
    present = {}
    for key in [key for key in arrays if key.endswith(_PRESENT)]:
        name, array = key.removesuffix(_PRESENT), arrays[key]
        if name not in arrays or not _is_view(arrays[name]):
            if _is_view(array):
                continue  # a view with an unlucky name
            raise UserError(f"{path}: {key!r}: expected a view {name!r} beside it, found none; add or rename one.")
        if array.dtype != bool or array.shape != labels.shape:
            expected, found = f"expected bool of shape {tuple(labels.shape)}", f"{array.dtype} of shape {array.shape}"
            raise UserError(f"{path}: {key!r}: {expected}, found {found}; convert it, or rename it if it is a view.")
        present[name] = torch.from_numpy(arrays.pop(key))
    return present


def _pop_rates(path: Path, arrays: dict[str, Array]) -> dict[str, float]:
    """Take out the ``<view>_rate`` arrays; one without its view is a note, such as ``heart_rate``."""
    rates = {}
    for key in [key for key in arrays if key.endswith(_RATE)]:
        name, array = key.removesuffix(_RATE), arrays[key]
        if name not in arrays or not _is_view(arrays[name]):
            continue
        if array.dtype.kind not in "iuf" or array.size != 1:
            found = f"{array.dtype} of shape {array.shape}"
            raise UserError(f"{path}: {key!r}: expected one number in Hz, found {found}; correct or rename it.")
        rates[name] = float(arrays.pop(key).item())
    return rates


def _as_labels(path: Path, labels: Array) -> Tensor:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        found = f"{labels.dtype} of shape {labels.shape}"
        raise UserError(f"{path}: 'labels': expected whole numbers of shape (N,), found {found}; convert them.")
    return torch.from_numpy(labels.astype(np.int64))


def _default_classes(path: Path, labels: Tensor) -> tuple[str, ...]:
    labels = labels[labels != UNLABELLED]
    count = int(labels.max()) + 1 if len(labels) else 0
    if count != len(labels.unique()):
        found = f"found {len(labels.unique())} different ones up to {count - 1}"
        raise UserError(f"{path}: 'labels': expected every number from 0 to C-1, {found}; renumber or add 'classes'.")
    return tuple(map(str, range(count)))


def _as_flags(path: Path, is_test: Array) -> Tensor:
    if is_test.dtype.kind not in "biu" or not np.isin(is_test, (0, 1)).all():
        raise UserError(f"{path}: 'is_test': expected true and false (or 1 and 0), found {is_test.dtype}; convert it.")
    if is_test.all() or not is_test.any():
        found = f"found {int(is_test.sum())} of {len(is_test)} marked as test"
        raise UserError(f"{path}: 'is_test': expected samples to train and samples to test on, {found}; correct it.")
    return torch.from_numpy(is_test.astype(bool))


def _as_groups(groups: Array) -> Tensor:
    """Keep whole numbers as they are; number other groups, such as names, in sorted order."""
    numbers = groups if groups.dtype.kind in "iu" else np.unique(groups, return_inverse=True)[1]
    return torch.from_numpy(numbers.astype(np.int64))


def _as_ids(path: Path, ids: Array) -> Tensor:
    if ids.dtype.kind not in "iu" or len(np.unique(ids)) != len(ids):
        again = len(ids) - len(np.unique(ids))
        found = f"{again} that another one has" if ids.dtype.kind in "iu" else str(ids.dtype)
        raise UserError(f"{path}: 'ids': expected a whole number of its own for each sample, found {found}; renumber.")
    return torch.from_numpy(ids.astype(np.int64))


def _as_splits(path: Path, split: Array) -> Tensor:
    """Turn the names of splits, or their numbers, into numbers."""
    numbers = split if split.dtype.kind in "iu" else np.full(split.shape, -1)
    for number, name in enumerate(SPLITS):
        numbers = np.where(split.astype(str) == name, number, numbers)
    if not np.isin(numbers, range(len(SPLITS))).all():
        expected = f"expected the names {', '.join(SPLITS)}, or their numbers 0 to {len(SPLITS) - 1}"
        strange = split[~np.isin(numbers, range(len(SPLITS)))][0]
        raise UserError(f"{path}: 'split': {expected}, found {str(strange)!r:.40}; correct it.")
    return torch.from_numpy(numbers.astype(np.int64))


def _is_view(array: Array) -> bool:
    """Tell views from notes such as file names, scales and running numbers."""
    return _is_numeric(array) and array.ndim > 1


def _tell_of_notes(path: Path, notes: Mapping[str, Array]) -> None:
    """Say which arrays are left out, but for single numbers and texts, which nobody takes for views."""
    strange = {
        name: array for name, array in notes.items() if array.size > 1 and (_is_numeric(array) or array.ndim > 1)
    }
    if strange:
        expected = "expected numbers with two or more dimensions, such as array[:, None], in a view"
        LOG.warning("%s: %s, found %s; left out.", path, expected, _keys(strange))


def _is_numeric(array: Array) -> bool:
    return array.dtype.kind in "biufc"


def _as_view(where: str, array: Array) -> Tensor:
    if array.dtype.kind == "c":
        raise UserError(f"{where}: expected real numbers, found {array.dtype}; store real and imaginary part apart.")
    if array.dtype != np.uint8 or array.ndim not in IMAGE_RANKS:
        if _looks_channels_last(array):
            expected = "expected numbers that are no bytes channels first, (N, channels, height, width)"
            raise UserError(f"{where}: {expected}, found {array.shape}; transpose it, or store bytes (uint8).")
        return _as_float32(where, array)
    if array.ndim == max(IMAGE_RANKS) and array.shape[-1] not in _CHANNELS:
        shapes = "(N, height, width) or (N, height, width, channels) with at most 4 channels"
        raise UserError(f"{where}: expected images of shape {shapes}, found {array.shape}; reorder the axes.")
    return as_images(array)


def _as_float32(where: str, array: Array) -> Tensor:
    if array.dtype == np.float32:
        return torch.from_numpy(array)
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if (lost := np.isinf(values) & np.isfinite(array)).any():
        found = f"found {array[lost][0]:g}"
        raise UserError(f"{where}: expected numbers below 3.4e38 in size, as float32 holds, {found}; scale them.")
    return torch.from_numpy(values)


def _looks_channels_last(array: Array) -> bool:
    """Tell ``(N, H, W, 3)``, and square ``(N, H, H, 1)``, from images of many channels that are 3 pixels or 1 wide."""
    if array.ndim != max(IMAGE_RANKS) or array.shape[1] <= max(_CHANNELS):
        return False
    _, height, width, channels = map(int, array.shape)
    return channels == _COLOURS or (channels == 1 and height == width)


def _keys(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"{key!r} {array.dtype} {array.shape}" for key, array in arrays.items()) or "nothing"
