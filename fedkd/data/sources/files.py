"""Files that cannot be read, told in one line."""

import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from fedkd.errors import UserError

DATA_VARIABLE = "FEDKD_DATA"  # environment variable: the folder that holds one subfolder per built-in data set
READ_ERRORS = (OSError, ValueError, EOFError, struct.error, zlib.error, zipfile.BadZipFile)


def unreadable(path: Path, expected: str, error: Exception) -> UserError:
    """Build the error for a file or folder that is missing or damaged; the cause is kept to one line."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: expected {expected}, found nothing there; check the path.")
    cause = one_line(error)
    return UserError(f"{path}: expected {expected}, found none that can be read ({cause}); check the path and content.")


def folders(path: Path) -> list[Path]:
    """Return the folders that hold those of the classes: ``train`` and ``test``, or the one there is."""
    both = [path / "train", path / "test"]
    return both if all(part.is_dir() for part in both) else [path]


def expect_classes(folder: Path, found: Sequence[str], train: Sequence[str]) -> None:
    """Refuse a folder that has other classes than that of the training samples.

    Raises:
        UserError: it has.
    """
    if list(found) != list(train):
        expected = f"expected the classes of train ({', '.join(train)})"
        raise UserError(f"{folder}: {expected}, found {', '.join(found)}; align them.")


def one_line(error: Exception) -> str:
    """Return the message of an error without its line breaks; its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
