"""Spoken digits in an archive of recordings."""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fedkd.data.sources import load
from fedkd.data.sources.fsdd import read_fsdd
from fedkd.errors import UserError


def wav(values: list[int], channels: int = 1, rate: int = 8000, width: int = 2) -> bytes:
    """A recording, byte by byte: RIFF, WAVE, the format and the values."""
    data = struct.pack(f"<{len(values)}h", *values)
    frame = channels * width
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * frame, frame, 8 * width)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def archive(folder: Path, recordings: dict[str, bytes]) -> Path:
    path = folder / "recordings.tar.xz"
    with tarfile.open(path, "w:xz") as file:
        member = tarfile.TarInfo("recordings")
        member.type = tarfile.DIRTYPE
        file.addfile(member)
        for name, content in recordings.items():
            member = tarfile.TarInfo(f"recordings/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def test_recordings_are_sorted_scaled_and_filled_up(tmp_path: Path) -> None:
    archive(
        tmp_path,
        {
            "7_zoe_10.wav": wav([1, 2]),
            "7_zoe_5.wav": wav([-32768, 16384, 32767]),
            "7_ann_4.wav": wav([0] * 7999 + [8192, 99]),  # the last value is after the first second
            "0_zoe_0.wav": wav([]),
        },
    )
    data = read_fsdd(tmp_path)
    audio = data.views["audio"]
    assert audio.shape == (4, 1, 8000)
    assert data.labels.tolist() == [0, 7, 7, 7]
    assert data.groups is not None
    assert data.groups.tolist() == [1, 0, 1, 1]
    assert data.official_test is not None
    assert data.official_test.tolist() == [True, True, False, False]
    assert not audio[0].any()
    assert float(audio[1, 0, -1]) == 0.25
    assert audio[2, 0, :4].tolist() == [-1, 0.5, 32767 / 32768, 0]
    assert audio[3, 0, :2].tolist() == [1 / 32768, 2 / 32768]
    assert data.rates == {"audio": 8000}


@pytest.mark.parametrize(
    ("recordings", "message"),
    [
        ({"hello.wav": wav([1])}, "it holds 'recordings/hello.wav'"),
        ({"1_ann_0.wav": wav([1, 2], channels=2)}, r"1_ann_0.wav: .* are \(2, 2, 8000\) instead of \(1, 2, 8000\)"),
        ({"1_ann_0.wav": wav([1, 2], rate=16000)}, r"are \(1, 2, 16000\) instead of"),
        ({"1_ann_0.wav": wav([1, 2], width=1)}, r"are \(1, 1, 8000\) instead of"),
        ({"1_ann_0.wav": b"no recording"}, "file does not start with RIFF id"),
        ({"1_ann_0.wav": b""}, "EOFError"),
        ({}, "it holds none"),
    ],
)
def test_an_archive_of_other_things_is_refused(tmp_path: Path, recordings: dict[str, bytes], message: str) -> None:
    path = archive(tmp_path, recordings)
    with pytest.raises(UserError, match=f"expected an archive of recordings .*{message}") as caught:
        read_fsdd(tmp_path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 5, 100, -1000])
def test_a_truncated_archive_is_refused(tmp_path: Path, kept: int) -> None:
    noise = np.random.default_rng(0).integers(-99, 99, 4000).tolist()
    path = archive(tmp_path, {"1_ann_0.wav": wav(noise)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="expected an archive of recordings"):
        read_fsdd(tmp_path)


def test_a_truncated_recording_is_shorter(tmp_path: Path) -> None:
    archive(tmp_path, {"1_ann_0.wav": wav([5, 6, 7])[:-2]})
    assert (read_fsdd(tmp_path).views["audio"] * 32768)[0, 0, :4].tolist() == [5, 6, 0, 0]


def test_the_real_recordings(shared_data: Path) -> None:
    data = load("fsdd", root=str(shared_data / "fsdd"))
    assert data.views["audio"].shape == (3000, 1, 8000)
    assert data.labels.bincount().tolist() == [300] * 10
    assert data.groups is not None
    assert data.groups.bincount().tolist() == [500] * 6
    assert data.official_test is not None
    tests = data.official_test
    assert data.labels[tests].bincount().tolist() == [30] * 10
    assert data.groups[tests].bincount().tolist() == [50] * 6
    assert data.views["audio"].abs().amax() <= 1
    # The fifth digit of theo (the last but one speaker), number 7, read from the bytes after a header of 44.
    with tarfile.open(shared_data / "fsdd" / "recordings.tar.xz") as file:
        member = file.extractfile("recordings/5_theo_7.wav")
        assert member is not None
        values = np.frombuffer(member.read()[44:], "<i2")
    row = data.views["audio"][5 * 300 + 4 * 50 + 7, 0]
    np.testing.assert_array_equal(row[: len(values)], values.astype(np.float64) / 32768)
    assert not row[len(values) :].any()
