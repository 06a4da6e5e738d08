"""Log-mel spectrograms of audio: how much power there is, by time and by pitch as people hear it."""

from functools import lru_cache

import torch
from torch import Tensor

WINDOW_SECONDS = 0.032
HOP_SECONDS = 0.016
MELS = 32  # bands, unless the name says another number
FLOOR = 1e-6  # added to the power before the logarithm; audio is in [-1, 1]
# A fixed shift and scale, never statistics of the samples, which would let the test set leak into training. Spoken
# digits at 8 kHz then have a mean of -0.6 and a standard deviation of 1.0, silence after the word included.
SHIFT, SCALE = 7.0, 5.0


def log_mel(audio: Tensor, rate: float, mels: int) -> Tensor:
    """Return the log-mel spectrograms of mono audio.

    Hann windows of 32 ms, one every 16 ms, centred on its time, with zeros beyond the ends; the power of each mel band
    (:func:`mel_filters`) goes through ``(log(power + 1e-6) + 7) / 5``.

    Args:
        audio: shape ``(N, 1, length)``, in [-1, 1].
        rate: samples per second.
        mels: number of mel bands.

    Returns:
        Shape ``(N, 1, mels, frames)``, low bands first, with ``frames = 1 + length // hop``.
    """
    window, hop = window_length(rate), round(HOP_SECONDS * rate)
    spectrum = torch.stft(
        audio.squeeze(1), window, hop, window=torch.hann_window(window), pad_mode="constant", return_complex=True
    )
    power = spectrum.real.square() + spectrum.imag.square()
    bands = mel_filters(rate, mels).float() @ power
    return torch.log(bands + FLOOR).add_(SHIFT).div_(SCALE).unsqueeze(1)


def window_length(rate: float) -> int:
    """Return the number of samples in one window."""
    return round(WINDOW_SECONDS * rate)


@lru_cache
def mel_filters(rate: float, mels: int) -> Tensor:
    """Return the triangular filters of a mel filter bank, float64, shape ``(mels, window_length // 2 + 1)``.

    The corners of the triangles are evenly spaced in mel from 0 to half the rate; each triangle rises from one corner
    to 1 at the next, and falls to 0 at the one after.

    Source: the mel scale of HTK, ``mel = 2595 log10(1 + f / 700)``.
    """
    window = window_length(rate)
    frequencies = torch.arange(window // 2 + 1, dtype=torch.float64) * rate / window
    top = 2595 * torch.log10(torch.tensor(1 + rate / 2 / 700, dtype=torch.float64))
    corners = 700 * (10 ** (torch.linspace(0, 1, mels + 2, dtype=torch.float64) * top / 2595) - 1)
    low, peak, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    return torch.minimum((frequencies - low) / (peak - low), (high - frequencies) / (high - peak)).clamp(min=0)


def most_mels(rate: float, mels: int) -> int:
    """Return the largest number of bands, up to ``mels``, of which none falls between two frequencies of the window."""
    return next((count for count in range(mels, 0, -1) if mel_filters(rate, count).any(dim=1).all()), 0)
