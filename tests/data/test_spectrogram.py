"""Log-mel spectrograms against the formula written out in NumPy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedkd.data.spectrogram import log_mel, mel_filters, most_mels

Array = NDArray[np.float64]


def mel(hertz: Array) -> Array:
    return 2595 * np.log10(1 + hertz / 700)


def triangles(rate: float, mels: int, bins: int) -> Array:
    """Each triangle by interpolation between its three corners."""
    mel_grid = np.linspace(0, mel(np.array(rate / 2)), mels + 2)
    corners = 700 * (10 ** (mel_grid / 2595) - 1)
    frequencies = np.linspace(0, rate / 2, bins)
    return np.stack([np.interp(frequencies, corners[k : k + 3], [0, 1, 0], left=0, right=0) for k in range(mels)])


@pytest.mark.parametrize(("rate", "mels"), [(8000.0, 32), (8000.0, 64), (16000.0, 40)])
def test_mel_filters(rate: float, mels: int) -> None:
    bins = round(0.032 * rate) // 2 + 1
    np.testing.assert_allclose(mel_filters(rate, mels), triangles(rate, mels, bins), atol=1e-12)


def test_a_thousand_hertz_are_a_thousand_mels() -> None:
    """HTK's anchor: of two bands up to 2 kHz (1521 mel), the corners are at 507 and 1014 mel, 398 and 1021 Hz."""
    filters = mel_filters(4000.0, 2)
    frequencies = np.arange(65) * 31.25
    assert abs(float(mel(np.array(1000.0))) - 1000) < 0.1
    peaks = frequencies[filters.argmax(dim=1).numpy()]
    np.testing.assert_allclose(peaks, [398, 1021], atol=31.25 / 2)


@pytest.mark.parametrize(("rate", "length", "mels"), [(8000.0, 1500, 32), (16000.0, 2048, 20)])
def test_log_mel_is_the_formula(rate: float, length: int, mels: int) -> None:
    audio = np.random.default_rng(0).normal(scale=0.1, size=(2, length))
    window, hop = round(0.032 * rate), round(0.016 * rate)
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(audio, ((0, 0), (window // 2, window // 2)))
    frames = np.stack([padded[:, k * hop : k * hop + window] for k in range(1 + length // hop)], axis=1)
    power = np.abs(np.fft.rfft(frames * taper)) ** 2
    expected = (np.log(power @ triangles(rate, mels, window // 2 + 1).T + 1e-6) + 7) / 5
    found = log_mel(torch.tensor(audio[:, None], dtype=torch.float32), rate, mels)
    assert found.shape == (2, 1, mels, 1 + length // hop)
    np.testing.assert_allclose(found[:, 0].numpy(), expected.transpose(0, 2, 1), atol=2e-4)


def test_silence_is_the_floor_and_a_tone_lies_in_its_band() -> None:
    """A tone of 1 kHz and amplitude 1 has the power (window / 4) ** 2 at its frequency."""
    silence = log_mel(torch.zeros(1, 1, 800), 8000.0, 32)
    np.testing.assert_allclose(silence, np.full((1, 1, 32, 7), (np.log(1e-6) + 7) / 5), atol=1e-6)
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 8000).reshape(1, 1, -1)
    middle = log_mel(tone, 8000.0, 32)[0, 0, :, 30]
    grid = mel(np.array(4000.0)) / 33  # mels from one peak to the next, the first at one step
    band = int(middle.argmax())
    assert band == round(1000 / grid) - 1
    assert float(torch.exp(middle[band] * 5 - 7)) < 1.5 * 64**2


def test_too_many_bands_would_be_empty() -> None:
    assert most_mels(8000.0, 64) == 64
    most = most_mels(8000.0, 256)
    empty = [not triangles(8000.0, mels, 129).any(axis=1).all() for mels in (most, most + 1)]
    assert empty == [False, True]
