"""A data set by name or by path."""

import os
from pathlib import Path

from fedkd.data.sources.audio_folder import is_audio_folder, read_audio_folder
from fedkd.data.sources.built_in import BUILT_IN
from fedkd.data.sources.cache import read, stamps
from fedkd.data.sources.dataset import DataSet
from fedkd.data.sources.fetching import fetch
from fedkd.data.sources.files import DATA_VARIABLE
from fedkd.data.sources.image_folder import read_image_folder
from fedkd.data.sources.npz import read_npz
from fedkd.errors import unknown


def load(name: str, root: str | None = None, *, download: bool = False) -> DataSet:
    """Load a data set by built-in name or by path; the same one again comes from a cache, unless its files changed.

    Args:
        name: a built-in name (see :func:`names`), a path that ends in ``.npz``, or the path of a folder of images or
            recordings.

            An ``.npz`` file holds ``labels`` ``(N,)``; every other numeric array of two or more dimensions is a view of
            ``N`` rows. ``uint8`` arrays ``(N, height, width)`` or ``(N, height, width, channels)`` are images and get
            scaled to [0, 1]; all others are taken as they are, images channels first. Optional: ``classes`` (names),
            ``is_test`` (official test rows) and ``groups`` (natural owner of each sample); ``<view>_present``, bool
            ``(N,)``, tells which samples have that view (what stands in the other rows is taken as zeros), and
            ``<view>_rate`` its sampling rate in Hz, if it is a signal; ``ids`` are stable numbers of the samples, and
            ``split`` names the split of each (train, public, validation, test), instead of a draw.

            An image folder holds ``<class>/<file>``, or ``train/`` and ``test/`` with that inside; its images become
            the colour view ``image``. A folder of recordings is the same with WAV files, which become the view
            ``audio``: the first second of each.
        root: folder of a built-in data set that is not bundled; default ``$FEDKD_DATA/<name>``, else ``data/<name>``
            (of sets that share a folder, that one; of a composed one, the folder that holds its parts).
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
    if name in BUILT_IN:
        folder = Path(root) if root else default_folder(name)
        return fetch(name, BUILT_IN[name], folder.resolve(), download=download)
    path = Path(name).expanduser().resolve()
    if path.suffix == ".npz":
        return read(read_npz, path, stamps(path))
    if path.is_dir():
        files = sorted(path.rglob("*"))
        return read(read_audio_folder if is_audio_folder(files) else read_image_folder, path, stamps(*files))
    raise unknown("data set", name, [*BUILT_IN, "<file>.npz", "<image folder>", "<audio folder>"])


def default_folder(name: str) -> Path:
    """Return the folder of a built-in data set where an experiment names none; it need not exist."""
    subfolder = BUILT_IN[name].folder
    return Path(os.environ.get(DATA_VARIABLE) or "data") / (name if subfolder is None else subfolder)


def names() -> dict[str, str]:
    """Return the built-in data sets: name to one-line description."""
    return {name: built_in.description for name, built_in in BUILT_IN.items()}
