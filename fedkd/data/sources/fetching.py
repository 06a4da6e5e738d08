"""What is known of a built-in data set, and how its files get here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from fedkd.data.sources.cache import read, stamps
from fedkd.data.sources.checksums import verify
from fedkd.data.sources.dataset import DataSet
from fedkd.data.sources.files import DATA_VARIABLE, READ_ERRORS, one_line
from fedkd.data.sources.idx import as_it_is_or_packed, is_idx
from fedkd.errors import UserError


@dataclass(frozen=True)
class BuiltIn:
    """A built-in data set.

    Attributes:
        description: one line for lists.
        read: reads it from its folder.
        files: the files it needs, by path within its folder, with the SHA-256 (hex) of each; without one where the
            reader compares another checksum or takes any file of its format. None at all: bundled. Idx files may be
            there as ``.gz``.
        folder: subfolder of the folder of all data sets, where it is not the data set's name; ``""``: composed of
            several data sets, so that folder itself.
        archive: class of torchvision that downloads the files; None: no download is known.
    """

    description: str
    read: Callable[[Path], DataSet]
    files: Mapping[str, str] = field(default_factory=dict)
    folder: str | None = None
    archive: str | None = None


def fetch(name: str, built_in: BuiltIn, folder: Path, *, download: bool) -> DataSet:
    """Load a built-in data set from its folder; if asked, download files that are missing first.

    Raises:
        UserError: files are missing, not the published ones, or cannot be downloaded.
    """
    files = _find(built_in, folder)
    if download and built_in.archive and None in files.values():
        _download(folder, built_in.archive)
        files = _find(built_in, folder)
    if missing := [kind for kind, path in files.items() if path is None]:
        raise UserError(_told_missing(name, built_in, folder, missing))
    found = {kind: path for kind, path in files.items() if path}
    for kind, path in found.items():
        if built_in.files[kind]:
            verify(path, built_in.files[kind])
    return read(built_in.read, folder, stamps(*found.values()))


def _find(built_in: BuiltIn, folder: Path) -> dict[str, Path | None]:
    """Return where each file is; None if it is missing."""
    paths = {file: as_it_is_or_packed(folder / file) if is_idx(file) else folder / file for file in built_in.files}
    return {file: path if path.is_file() else None for file, path in paths.items()}


def _told_missing(name: str, built_in: BuiltIn, folder: Path, missing: list[str]) -> str:
    parents = {PurePosixPath(file).parent for file in missing}
    parent = parents.pop() if len(parents) == 1 else PurePosixPath()
    files = ", ".join(str(PurePosixPath(file).relative_to(parent)) for file in missing)
    packed = " (as they are or as .gz)" if all(map(is_idx, missing)) else ""
    parts = sorted({PurePosixPath(file).parts[0] for file in built_in.files})
    held = ", ".join(map(repr, parts if built_in.folder == "" else [built_in.folder or name]))
    other = "" if built_in.archive else "or "
    last = ", or set data.download to true." if built_in.archive else "; no download of them is known."
    return (
        f"data set {name!r}: expected {files}{packed} in {folder / parent}, not found; put them there, {other}"
        f"let {DATA_VARIABLE} name the folder that holds {held}{last}"
    )


def _download(folder: Path, archive: str) -> None:
    """Let torchvision fetch a data set's files into a folder and compare their checksums."""
    from torchvision import datasets

    try:
        getattr(datasets, archive)(str(folder), download=True)
    except (*READ_ERRORS, RuntimeError, HTTPException) as error:
        cause = f"expected to download {archive} into it, but: {one_line(error)}"
        raise UserError(f"{folder}: {cause}; check the network and the folder, or put the files there.") from error
