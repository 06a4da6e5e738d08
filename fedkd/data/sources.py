"""Data sets: the built-in ones by name, the user's own by path. Read from disk; only if asked, downloaded first."""

import gzip
import hashlib
import json
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.errors import UserError, unknown

Array = NDArray[Any]
_Stamps = tuple[tuple[int, int], ...]  # time of change in ns and size of each file

DATA_VARIABLE = "FEDKD_DATA"  # environment variable: the folder that holds one subfolder per built-in data set

_BYTE_MAX = 255  # brightest value of an 8-bit image
_DIGITS_MAX = 16  # brightest value of scikit-learn's digits
_IDX_BYTES = 0x08  # type code of unsigned bytes in an idx file
_IDX_FILES = tuple(
    f"{kind}-ubyte" for kind in ("train-images-idx3", "t10k-images-idx3", "train-labels-idx1", "t10k-labels-idx1")
)
_IMAGE_RANKS = (3, 4)  # (N, height, width) and (N, height, width, channels)
_CHANNELS = (1, 2, 3, 4)  # grey, grey + alpha, colour, colour + alpha
_COLOURS = 3
_READ_ERRORS = (OSError, ValueError, EOFError, struct.error, zlib.error, zipfile.BadZipFile)

_TEN_DIGITS = tuple("0123456789")
_TEN_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@dataclass(frozen=True, eq=False)  # eq=False: tensors have no single truth value, so equality means identity
class DataSet:
    """Labelled samples in all their views.

    Attributes:
        name: short name, the same on every machine.
        views: one float32 tensor ``(N, ...)`` per view name: images ``(N, channels, height, width)`` in [0, 1],
            signals ``(N, channels, length)``, vectors ``(N, d)``.
        labels: class numbers, int64, shape ``(N,)``.
        classes: the ``C`` class names; label ``k`` means ``classes[k]``.
        official_test: rows that the publisher calls test, bool, shape ``(N,)``.
        groups: natural owner of each sample, such as a person, int64, shape ``(N,)``.

    Raises:
        UserError: rows are not aligned, a value is not finite, or a label is outside the classes.
    """

    name: str
    views: Mapping[str, Tensor]
    labels: Tensor
    classes: tuple[str, ...]
    official_test: Tensor | None = None
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse data that no federation could be built from."""
        problem = next(_problems(self), None)
        if problem is not None:
            raise UserError(f"data set {self.name!r}: {problem}")

    def __len__(self) -> int:
        """Return the number of samples ``N``."""
        return len(self.labels)

    @property
    def ids(self) -> Tensor:
        """The stable sample ids ``0 ... N-1``, int64, shape ``(N,)``."""
        return torch.arange(len(self))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything in the data set, the same in every process that holds the same data."""
        columns = {"labels": self.labels, "official_test": self.official_test, "groups": self.groups}
        columns |= {f"view {name}": self.views[name] for name in sorted(self.views)}
        tensors = {name: values for name, values in columns.items() if values is not None}
        # The header fixes where each tensor begins, so that no two different data sets hash the same bytes.
        header = [self.name, self.classes, [(name, str(t.dtype), list(t.shape)) for name, t in tensors.items()]]
        digest = hashlib.sha256(json.dumps(header).encode())
        for values in tensors.values():
            digest.update(values.contiguous().numpy().data)
        return digest.hexdigest()


def load(name: str, root: str | None = None, *, download: bool = False) -> DataSet:
    """Load a data set by built-in name or by path; the same one again comes from a cache, unless its files changed.

    Args:
        name: a built-in name (see :func:`names`), a path that ends in ``.npz``, or the path of an image folder.

            An ``.npz`` file holds ``labels`` ``(N,)``; every other numeric array of two or more dimensions is a view of
            ``N`` rows. ``uint8`` arrays ``(N, height, width)`` or ``(N, height, width, channels)`` are images and get
            scaled to [0, 1]; all others are taken as they are, images channels first. Optional: ``classes`` (names),
            ``is_test`` (official test rows) and ``groups`` (natural owner of each sample).

            An image folder holds ``<class>/<file>``, or ``train/`` and ``test/`` with that inside; its images become
            the colour view ``image``.
        root: folder of a built-in data set that is not bundled; default ``$FEDKD_DATA/<name>``, else ``data/<name>``.
        download: whether files of a built-in data set that are missing are fetched from its original source.

    Returns:
        The data set.

    Raises:
        UserError: the name is unknown, files are missing or not as described above, or they cannot be downloaded.

    Example:
        >>> digits = load("digits")
        >>> digits.views["image"].shape
        torch.Size([1797, 1, 8, 8])
    """
    if name in _BUILT_IN:
        folder = Path(root) if root else Path(os.environ.get(DATA_VARIABLE) or "data") / name
        return _load_built_in(_BUILT_IN[name], folder.resolve(), download=download)
    path = Path(name).expanduser().resolve()
    if path.suffix == ".npz":
        return _read(_read_npz, path, _stamps(path))
    if path.is_dir():
        return _read(_read_image_folder, path, _stamps(*sorted(path.rglob("*"))))
    raise unknown("data set", name, [*_BUILT_IN, "<file>.npz", "<image folder>"])


def names() -> dict[str, str]:
    """Return the built-in data sets: name to one-line description."""
    return {name: built_in.description for name, built_in in _BUILT_IN.items()}


@lru_cache(maxsize=2)  # data sets are large
def _read(reader: Callable[[Path], DataSet], path: Path, stamps: _Stamps) -> DataSet:
    """Read a data set unless it has been read from the same path when its files had the same stamps."""
    return reader(path)


def _stamps(*paths: Path) -> _Stamps:
    """Return what changes with a file's content; nothing for files that are not there, which the reader reports."""
    found = [path.stat() for path in paths if path.is_file()]
    return tuple((status.st_mtime_ns, status.st_size) for status in found)


# -- validation


def _problems(data: DataSet) -> Iterator[str]:
    """Yield what is wrong with a data set; labels first, since the rest is measured against them."""
    labels = data.labels
    if labels.dtype != torch.int64 or labels.ndim != 1:
        yield f"labels: expected int64 of shape (N,), found {_describe(labels)}; give one class number per sample."
    if not len(labels):
        yield "expected at least one sample, found none; check the files it was read from."
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(data.classes):
        expected = f"expected class numbers 0 to {len(data.classes) - 1}"
        yield f"labels: {expected}, found {low} to {high}; correct the labels or the list of classes."
    if not data.views:
        yield "expected at least one view, found none; add an array with one row per sample."
    for name, values in data.views.items():
        yield from _view_problems(name, values, len(labels))
    for name, column, dtype in (
        ("official_test", data.official_test, torch.bool),
        ("groups", data.groups, torch.int64),
    ):
        if column is not None and (column.shape != labels.shape or column.dtype != dtype):
            yield f"{name}: expected {dtype} of shape ({len(labels)},), found {_describe(column)}; give one per sample."


def _view_problems(name: str, values: Tensor, rows: int) -> Iterator[str]:
    if not name or "@" in name:
        yield f"view {name!r}: expected a name without '@' (it separates view and size); rename the view."
    if values.dtype != torch.float32 or values.ndim == 0 or len(values) != rows:
        yield f"view {name!r}: expected float32 with {rows} rows, one per label, found {_describe(values)}; convert it."
    elif not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values.reshape(rows, -1)).all(dim=1)).sum())
        yield f"view {name!r}: expected finite numbers, found NaN or infinity in {bad} of {rows} rows; clean these."


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


# -- built-in data sets


def _read_digits(_folder: Path) -> DataSet:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    images = torch.tensor(bundle.images, dtype=torch.float32).unsqueeze(1) / _DIGITS_MAX
    return DataSet("digits", {"image": images}, torch.tensor(bundle.target, dtype=torch.int64), _TEN_DIGITS)


# Not with torchvision's own reader: it wants these files unpacked, and unpacks them into their folder, which may be
# shared and read-only; the .gz files can be read as they are.


def _read_mnist(folder: Path, *, name: str, archive: str, classes: tuple[str, ...]) -> DataSet:
    """Read the four idx files of MNIST or of a data set in its format; training rows come first."""
    files = _find_idx(folder, archive)
    if missing := [kind for kind, path in files.items() if path is None]:
        where = f"{', '.join(missing)} (each as it is or as .gz) in {folder / archive / 'raw'}"
        raise UserError(
            f"data set {name!r}: expected {where}, not found; put them there, "
            f"let {DATA_VARIABLE} name the folder that holds {name!r}, or set data.download to true."
        )
    train_images, test_images, train_labels, test_labels = (_read_idx(path) for path in files.values() if path)
    return DataSet(
        name,
        {"image": _as_images(np.concatenate([train_images, test_images]))},
        torch.from_numpy(np.concatenate([train_labels, test_labels]).astype(np.int64)),
        classes,
        official_test=torch.arange(len(train_labels) + len(test_labels)) >= len(train_labels),
    )


def _find_idx(folder: Path, archive: str) -> dict[str, Path | None]:
    """Return where each file is, unpacked or as ``.gz``; None if it is missing."""
    raw = folder / archive / "raw"
    candidates = {name: (raw / name, raw / f"{name}.gz") for name in _IDX_FILES}
    return {name: next((path for path in paths if path.is_file()), None) for name, paths in candidates.items()}


def _read_idx(path: Path) -> Array:
    """Read an idx file of unsigned bytes: two zeros, type, number of dimensions, sizes (big-endian), content."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}I", raw, offset=4)
        if zeros or kind != _IDX_BYTES:
            raise ValueError("it does not begin like an idx file of bytes")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except _READ_ERRORS as error:
        raise _unreadable(path, "an idx file", error) from error


@dataclass(frozen=True)
class _BuiltIn:
    description: str
    read: Callable[[Path], DataSet]
    archive: str | None = None  # its class in torchvision, and so the subfolder of its files; None: bundled


_BUILT_IN: Mapping[str, _BuiltIn] = {
    "digits": _BuiltIn("1,797 handwritten digits, grey 8x8; bundled with scikit-learn", _read_digits),
    "mnist": _BuiltIn(
        "70,000 handwritten digits, grey 28x28; from a local folder, or downloaded if data.download is set",
        partial(_read_mnist, name="mnist", archive="MNIST", classes=_TEN_DIGITS),
        "MNIST",
    ),
    "fashion-mnist": _BuiltIn(
        "70,000 pictures of clothes, grey 28x28; from a local folder, or downloaded if data.download is set",
        partial(_read_mnist, name="fashion-mnist", archive="FashionMNIST", classes=_TEN_CLOTHES),
        "FashionMNIST",
    ),
}


def _load_built_in(built_in: _BuiltIn, folder: Path, *, download: bool) -> DataSet:
    if built_in.archive is None:
        return _read(built_in.read, folder, ())
    if download and None in _find_idx(folder, built_in.archive).values():
        _download(folder, built_in.archive)
    files = _find_idx(folder, built_in.archive).values()
    return _read(built_in.read, folder, _stamps(*(path for path in files if path)))


def _download(folder: Path, archive: str) -> None:
    """Let torchvision fetch a data set's files into a folder and compare their checksums."""
    from torchvision import datasets

    try:
        getattr(datasets, archive)(str(folder), download=True)
    except (*_READ_ERRORS, RuntimeError, HTTPException) as error:
        cause = f"expected to download {archive} into it, but: {_one_line(error)}"
        raise UserError(f"{folder}: {cause}; check the network and the folder, or put the files there.") from error


# -- the user's own: .npz


def _read_npz(path: Path) -> DataSet:
    arrays = _open_npz(path)
    if "labels" not in arrays:
        raise UserError(f"{path}: expected key 'labels' (class numbers), found {_keys(arrays)}; add or rename it.")
    labels = _as_labels(path, arrays.pop("labels"))
    classes, is_test, groups = (arrays.pop(key, None) for key in ("classes", "is_test", "groups"))
    for key, column in (("is_test", is_test), ("groups", groups)):
        if column is not None and column.shape != labels.shape:
            raise UserError(
                f"{path}: {key!r}: expected shape {tuple(labels.shape)} as the labels, found {column.shape}."
            )
    views = {name: array for name, array in arrays.items() if _is_view(array)}
    for name, array in views.items():
        if len(array) != len(labels):
            expected = f"expected {len(labels)} rows, one per label"
            raise UserError(f"{path}: {name!r}: {expected}, found {len(array)}; align it, or leave it out.")
    if not views:
        raise UserError(f"{path}: expected a view ({len(labels)}, ...), found {_keys(arrays)}; add one.")
    return DataSet(
        path.stem,
        {name: _as_view(f"{path}: {name!r}", array) for name, array in views.items()},
        labels,
        _default_classes(path, labels) if classes is None else tuple(map(str, classes.reshape(-1))),
        None if is_test is None else _as_flags(path, is_test),
        None if groups is None else _as_groups(groups),
    )


def _open_npz(path: Path) -> dict[str, Array]:
    """Read all arrays; pickled objects are refused, since opening them would run code from the file."""
    try:
        # Opened here because NumPy, given a path, forgets to close a damaged file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (*_READ_ERRORS, TypeError) as error:  # TypeError: a lone array (.npy) under this name
        raise _unreadable(path, "an .npz file of plain arrays", error) from error


def _as_labels(path: Path, labels: Array) -> Tensor:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        found = f"{labels.dtype} of shape {labels.shape}"
        raise UserError(f"{path}: 'labels': expected whole numbers of shape (N,), found {found}; convert them.")
    return torch.from_numpy(labels.astype(np.int64))


def _default_classes(path: Path, labels: Tensor) -> tuple[str, ...]:
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


def _is_view(array: Array) -> bool:
    """Tell views from notes such as file names, scales and running numbers."""
    return array.dtype.kind in "biufc" and array.ndim > 1


def _as_view(where: str, array: Array) -> Tensor:
    if array.dtype.kind == "c":
        raise UserError(f"{where}: expected real numbers, found {array.dtype}; store real and imaginary part apart.")
    if array.dtype != np.uint8 or array.ndim not in _IMAGE_RANKS:
        if _looks_channels_last(array):
            expected = "expected numbers that are no bytes channels first, (N, channels, height, width)"
            raise UserError(f"{where}: {expected}, found {array.shape}; transpose it, or store bytes (uint8).")
        return torch.from_numpy(array.astype(np.float32))
    if array.ndim == max(_IMAGE_RANKS) and array.shape[-1] not in _CHANNELS:
        shapes = "(N, height, width) or (N, height, width, channels) with at most 4 channels"
        raise UserError(f"{where}: expected images of shape {shapes}, found {array.shape}; reorder the axes.")
    return _as_images(array)


def _looks_channels_last(array: Array) -> bool:
    """Tell ``(N, H, W, 3)``, and square ``(N, H, H, 1)``, from images of many channels that are 3 pixels or 1 wide."""
    if array.ndim != max(_IMAGE_RANKS) or array.shape[1] <= max(_CHANNELS):
        return False
    _, height, width, channels = map(int, array.shape)
    return channels == _COLOURS or (channels == 1 and height == width)


def _keys(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"{key!r} {array.dtype} {array.shape}" for key, array in arrays.items()) or "nothing"


# -- the user's own: image folder


def _read_image_folder(path: Path) -> DataSet:
    split = (path / "train").is_dir() and (path / "test").is_dir()
    parts = [_list_images(part) for part in ([path / "train", path / "test"] if split else [path])]
    classes = parts[0][0]
    if parts[-1][0] != classes:
        expected, found = ", ".join(classes), ", ".join(parts[-1][0])
        raise UserError(f"{path / 'test'}: expected the classes of train ({expected}), found {found}; align them.")
    files = [file for _, samples in parts for file in samples]
    return DataSet(
        path.name,
        {"image": _as_images(_read_images(path, [file for file, _ in files]))},
        torch.tensor([label for _, label in files], dtype=torch.int64),
        classes,
        official_test=torch.arange(len(files)) >= len(parts[0][1]) if split else None,
    )


def _list_images(folder: Path) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    """Return the class names and ``(file, label)`` of each image, both in torchvision's order."""
    from torchvision.datasets import ImageFolder

    try:
        listing = ImageFolder(str(folder))
    except OSError as error:
        raise _unreadable(folder, "an image folder <class>/<file>", error) from error
    return tuple(listing.classes), listing.samples


def _read_images(folder: Path, files: list[str]) -> Array:
    """Read colour images of one size, uint8, shape ``(N, height, width, 3)``."""
    from torchvision.datasets.folder import default_loader

    images = []
    for file in files:
        try:
            images.append(np.asarray(default_loader(file)))
        except OSError as error:
            raise _unreadable(Path(file), "an image", error) from error
    sizes = Counter(f"{image.shape[1]}x{image.shape[0]}" for image in images)
    if len(sizes) > 1:
        found = ", ".join(f"{size} ({count} files)" for size, count in sizes.most_common(5))
        raise UserError(f"{folder}: expected images of one size, found width x height {found}; resize them.")
    return np.stack(images)


# -- shared by the readers


def _as_images(array: Array) -> Tensor:
    """Turn bytes ``(N, H, W)`` or ``(N, H, W, C)`` into float32 ``(N, C, H, W)`` in [0, 1]."""
    channels_last = array if array.ndim == max(_IMAGE_RANKS) else array[..., np.newaxis]
    images = np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2), dtype=np.float32)
    return torch.from_numpy(images).div_(_BYTE_MAX)


def _unreadable(path: Path, expected: str, error: Exception) -> UserError:
    """Build the error for a file or folder that is missing or damaged; the cause is kept to one line."""
    cause = _one_line(error)
    return UserError(f"{path}: expected {expected}, found none that can be read ({cause}); check the path and content.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
