"""A file is the published one, or refused."""

import os
from pathlib import Path

import pytest

from fedkd.data.sources.checksums import verify
from fedkd.errors import UserError

# Of the three letters abc: FIPS 180-2, appendix B.1, and RFC 1321, appendix A.5.
SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
MD5 = "900150983cd24fb0d6963f7d28e17f72"


@pytest.fixture
def abc(tmp_path: Path) -> Path:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    return path


def test_the_published_file_is_accepted(abc: Path) -> None:
    verify(abc, SHA256)
    verify(abc, MD5, "md5")


def test_another_file_is_refused_in_one_line(abc: Path) -> None:
    with pytest.raises(UserError) as caught:
        verify(abc, "00ff")
    assert str(caught.value) == (f"{abc}: expected sha256 00ff, found {SHA256}; replace the file by the published one.")


def test_a_file_is_read_once_unless_its_stamp_changes(abc: Path) -> None:
    os.utime(abc, ns=(0, 5))
    verify(abc, SHA256)
    abc.write_bytes(b"abd")
    os.utime(abc, ns=(0, 5))
    verify(abc, SHA256)  # time and size are as before
    os.utime(abc, ns=(0, 6))
    with pytest.raises(UserError, match=f"expected sha256 {SHA256}, found [^b]"):
        verify(abc, SHA256)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent: expected a file, found nothing there; check the path"):
        verify(tmp_path / "absent", SHA256)
