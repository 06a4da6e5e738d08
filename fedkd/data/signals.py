"""Qualities of signals: the sampling rate."""

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

LARGEST_TERM = 1000  # of the ratio of two rates; the filter grows with it


def ratio(old: float, new: float) -> Fraction | None:
    """Return ``new / old`` for two rates in Hz, or None if it is no ratio of whole numbers up to a thousand.

    Example:
        >>> ratio(44100, 16000), ratio(44100, 44099)
        (Fraction(160, 441), None)
    """
    exact = Fraction(str(new)) / Fraction(str(old))
    return exact if max(exact.numerator, exact.denominator) <= LARGEST_TERM else None


def resampled(signals: Tensor, share: Fraction) -> Tensor:
    """Return signals ``(N, channels, length)`` at this share of their rate, antialiased, length rounded up.

    The straight line from a signal's first value to its last is taken off before the filter and put back after it, so
    that an offset such as gravity leaves no trace at the ends, where the filter meets zeros.

    Source: ``scipy.signal.resample_poly``, a polyphase filter with a Kaiser window, here in float64.
    """
    from scipy.signal import resample_poly

    if share == 1:
        return signals
    values = signals.double().numpy()
    first, slope = values[..., :1], (values[..., -1:] - values[..., :1]) / max(1, values.shape[-1] - 1)
    old = np.arange(values.shape[-1])
    filtered = resample_poly(values - first - slope * old, share.numerator, share.denominator, axis=-1)
    new = np.arange(filtered.shape[-1]) / float(share)
    return torch.from_numpy((filtered + first + slope * new).astype(np.float32))
