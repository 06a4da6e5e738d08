"""Recordings: WAV files as our sources read them."""

import io
import wave

import numpy as np

from fedkd.data.sources.arrays import Array

_FULL_SCALE = 32768  # of 16-bit audio
_MOST_HERTZ = 400_000  # what a damaged file says must not exhaust the memory

_MONO_16_BIT = (1, 2)  # channels, bytes per value


def first_second(name: str, content: bytes, rate: int | None = None) -> tuple[Array, int]:
    """Return the first second of a recording, filled up with zeros, and its sampling rate.

    Args:
        name: of the file, for the error.
        content: of a WAV file with one channel of 16 bits.
        rate: that it must have, in Hz; any without.

    Returns:
        Values in [-1, 1], float32, shape ``(rate,)``; and the rate in Hz.

    Raises:
        ValueError: it has another number of channels or bytes, or another rate.
        wave.Error: it is no WAV file.
    """
    with wave.open(io.BytesIO(content)) as sound:
        found, hertz = (sound.getnchannels(), sound.getsampwidth()), sound.getframerate()
        if found != _MONO_16_BIT or hertz != (rate or hertz) or hertz > _MOST_HERTZ:
            expected = (*_MONO_16_BIT, rate or f"at most {_MOST_HERTZ}")
            raise ValueError(f"{name}: channels, bytes and Hz are {(*found, hertz)} instead of {expected}")
        values = np.frombuffer(sound.readframes(hertz), "<i2")
    audio = np.zeros(hertz, np.float32)
    audio[: len(values)] = values / _FULL_SCALE
    return audio, hertz
