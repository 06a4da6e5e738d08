"""Files of built-in data sets are the published ones, byte for byte."""

import hashlib
from functools import lru_cache
from pathlib import Path

from fedkd.data.sources.cache import Stamps, stamps
from fedkd.data.sources.files import unreadable
from fedkd.errors import UserError


def verify(path: Path, expected: str, kind: str = "sha256") -> None:
    """Refuse a file that is not the published one; it is read once per process, unless it changes.

    Args:
        path: the file.
        expected: its published checksum (hex).
        kind: of checksum: ``sha256``, or ``md5`` where the publisher gives no other.

    Raises:
        UserError: the checksum is another, or the file cannot be read.
    """
    found = _checksum(path, stamps(path), kind)
    if found != expected:
        raise UserError(f"{path}: expected {kind} {expected}, found {found}; replace the file by the published one.")


@lru_cache(maxsize=64)
def _checksum(path: Path, stamps: Stamps, kind: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise unreadable(path, "a file", error) from error
