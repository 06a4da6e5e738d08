"""The user's own folder of recordings."""

from pathlib import Path

import pytest

from fedkd.data.sources import load
from fedkd.errors import UserError
from tests.data.sources.test_recordings import written


def write(path: Path, values: list[int], rate: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(written(values, rate))


def test_an_audio_folder(tmp_path: Path) -> None:
    write(tmp_path / "words" / "yes" / "b.wav", [16384])
    write(tmp_path / "words" / "no" / "b.WAV", [0, 16384])
    write(tmp_path / "words" / "no" / "a.wav", [0, 0, 16384])
    (tmp_path / "words" / "no" / "notes.txt").write_text("no recording")
    (tmp_path / "words" / "empty").mkdir()

    data = load(str(tmp_path / "words"))

    assert data.name == "words"
    assert data.classes == ("no", "yes")
    assert data.labels.tolist() == [0, 0, 1]
    assert data.views["audio"].tolist() == [[[0, 0, 0.5, 0]], [[0, 0.5, 0, 0]], [[0.5, 0, 0, 0]]]
    assert data.rates == {"audio": 4}
    assert data.official_test is None


def test_an_audio_folder_with_train_and_test(tmp_path: Path) -> None:
    for number, name in enumerate(["train/no", "train/yes", "test/no", "test/yes"]):
        write(tmp_path / name / "a.wav", [number])

    data = load(str(tmp_path))

    assert data.labels.tolist() == [0, 1, 0, 1]
    assert (data.views["audio"][:, 0, 0] * 32768).tolist() == [0, 1, 2, 3]
    assert data.official_test is not None
    assert data.official_test.tolist() == [False, False, True, True]


def test_an_audio_folder_that_is_not_as_described(tmp_path: Path) -> None:
    write(tmp_path / "rates" / "a" / "a.wav", [1])
    write(tmp_path / "rates" / "b" / "b.wav", [1], rate=8)
    with pytest.raises(
        UserError, match=r"rates: expected recordings of one sampling rate, found 4 Hz \(1 files\), 8 Hz"
    ):
        load(str(tmp_path / "rates"))
    write(tmp_path / "lone.wav" / "a.wav", [1])
    with pytest.raises(UserError, match=r"expected an audio folder <class>/<file>\.wav, found none"):
        load(str(tmp_path / "lone.wav"))
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "a" / "x.wav").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"x\.wav: expected a WAV file with one channel of 16 bits"):
        load(str(tmp_path / "bad"))
    write(tmp_path / "other" / "train" / "a" / "x.wav", [1])
    write(tmp_path / "other" / "test" / "b" / "x.wav", [1])
    with pytest.raises(UserError, match=r"test: expected the classes of train \(a\), found b"):
        load(str(tmp_path / "other"))
