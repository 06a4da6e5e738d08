"""Sampling rates, against sines whose samples at any rate are known."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from fedkd.data.signals import ratio, resampled


def sine(frequency: float, rate: float, seconds: float = 4.0) -> torch.Tensor:
    times = np.arange(round(rate * seconds)) / rate
    return torch.tensor(np.sin(2 * np.pi * frequency * times), dtype=torch.float32).reshape(1, 1, -1)


@pytest.mark.parametrize(("old", "new"), [(50.0, 25.0), (50.0, 20.0), (8000.0, 3000.0)])
def test_a_slow_sine_stays_and_a_fast_one_goes(old: float, new: float) -> None:
    share = Fraction(int(new), int(old))
    middle = slice(round(0.5 * new), round(1.5 * new))
    slow = resampled(sine(new / 10, old, 2.0), share)
    assert slow.dtype == torch.float32
    assert slow.shape == (1, 1, round(2 * new))
    np.testing.assert_allclose(slow[..., middle], sine(new / 10, new, 2.0)[..., middle], atol=0.01)
    fast = resampled(sine(0.5 * (new + old) / 2, old, 2.0), share)
    assert float(fast[..., middle].abs().max()) < 0.02


def test_every_row_and_channel_is_its_own_signal() -> None:
    signals = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))
    together = resampled(signals, Fraction(1, 2))
    assert torch.equal(together[1:, 2:], resampled(signals[1:, 2:], Fraction(1, 2)))


def test_offsets_and_drifts_reach_the_ends_and_lengths_are_rounded_up() -> None:
    times = torch.arange(51, dtype=torch.float32)
    lines = torch.stack([torch.full((51,), 9.81), 3 - 0.5 * times]).unsqueeze(0)
    found = resampled(lines, Fraction(2, 5))
    assert found.shape == (1, 2, 21)
    np.testing.assert_allclose(found[0, 0], np.full(21, 9.81), atol=1e-5)
    np.testing.assert_allclose(found[0, 1], 3 - 0.5 * 2.5 * np.arange(21), atol=1e-4)


def test_the_same_rate_changes_nothing() -> None:
    signals = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(resampled(signals, Fraction(1)), signals)


def test_ratios() -> None:
    assert ratio(50.0, 12.5) == Fraction(1, 4)
    assert ratio(8000.0, 8000.0) == 1
    assert ratio(0.1, 0.03) == Fraction(3, 10)
    assert ratio(8000.0, 7999.0) is None
