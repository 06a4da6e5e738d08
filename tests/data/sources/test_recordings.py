"""WAV files: the first second of each, in [-1, 1]."""

import io
import wave

import numpy as np
import pytest

from fedkd.data.sources.recordings import first_second


def written(values: list[int], rate: int = 4, channels: int = 1, width: int = 2) -> bytes:
    """Return a WAV file of these numbers."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate)
        sound.writeframes(np.array(values, f"<i{width}").tobytes())
    return file.getvalue()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 32767, -32768, 16384], [0, 32767 / 32768, -1, 0.5]),
        ([16384], [0.5, 0, 0, 0]),
        ([1, 2, 3, 4, 5, 6], [1 / 32768, 2 / 32768, 3 / 32768, 4 / 32768]),
        ([], [0, 0, 0, 0]),
    ],
)
def test_the_first_second_is_read_and_filled_up(values: list[int], expected: list[float]) -> None:
    audio, rate = first_second("a.wav", written(values))
    assert (audio.dtype, audio.tolist(), rate) == (np.float32, expected, 4)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (written([1, 2], channels=2), r"a.wav: channels, bytes and Hz are \(2, 2, 4\) instead of \(1, 2, 'at most"),
        (written([1], width=4), r"\(1, 4, 4\) instead of"),
        (written([1], rate=2**30), r"\(1, 2, 1073741824\) instead of \(1, 2, 'at most 400000'\)"),
    ],
)
def test_other_recordings_are_refused(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        first_second("a.wav", content)


def test_another_rate_than_the_one_that_it_must_have_is_refused() -> None:
    assert first_second("a.wav", written([1], rate=8), rate=8)[1] == 8
    with pytest.raises(ValueError, match=r"\(1, 2, 4\) instead of \(1, 2, 8\)"):
        first_second("a.wav", written([1]), rate=8)


def test_what_is_no_wav_file_is_refused() -> None:
    with pytest.raises(wave.Error):
        first_second("a.wav", b"RIFX, or so it says, but no more")
