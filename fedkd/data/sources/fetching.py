"""What is known of a built-in data set, and how its files get here."""

from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from fedkd.data.sources.cache import read, stamps
from fedkd.data.sources.dataset import DataSet
from fedkd.data.sources.files import READ_ERRORS, one_line
from fedkd.data.sources.idx import find_idx
from fedkd.errors import UserError


@dataclass(frozen=True)
class BuiltIn:
    """A built-in data set.

    Attributes:
        description: one line for lists.
        read: reads it from its folder.
        archive: its class in torchvision, and so the subfolder of its files; None: bundled.
    """

    description: str
    read: Callable[[Path], DataSet]
    archive: str | None = None


def fetch(built_in: BuiltIn, folder: Path, *, download: bool) -> DataSet:
    """Load a built-in data set from its folder; if asked, download files that are missing first.

    Raises:
        UserError: files are missing or damaged, or cannot be downloaded.
    """
    if built_in.archive is None:
        return read(built_in.read, folder, ())
    if download and None in find_idx(folder, built_in.archive).values():
        _download(folder, built_in.archive)
    files = find_idx(folder, built_in.archive).values()
    return read(built_in.read, folder, stamps(*(path for path in files if path)))


def _download(folder: Path, archive: str) -> None:
    """Let torchvision fetch a data set's files into a folder and compare their checksums."""
    from torchvision import datasets

    try:
        getattr(datasets, archive)(str(folder), download=True)
    except (*READ_ERRORS, RuntimeError, HTTPException) as error:
        cause = f"expected to download {archive} into it, but: {one_line(error)}"
        raise UserError(f"{folder}: {cause}; check the network and the folder, or put the files there.") from error
