"""The architecture for spectrograms: shapes, vectorised runs, and what it is made for."""

import pytest
import torch

from fedkd import models
from fedkd.errors import UserError
from fedkd.models import ModelSpec
from tests.models.checks import a_cohort_equals_one_by_one, a_gradient_reaches_every_parameter, accuracy_after


@pytest.mark.parametrize("shape", [(1, 32, 63), (1, 64, 7), (1, 16, 126), (2, 2, 2)], ids=str)
def test_output_shapes(shape: tuple[int, int, int]) -> None:
    model, inputs = models.build(ModelSpec("spectrogram-cnn", shape, 7, feature_width=12)), torch.randn(3, *shape)
    assert model.features(inputs).shape == (3, 12)
    assert torch.equal(model(inputs), model(inputs))


def test_a_cohort_equals_one_by_one() -> None:
    a_cohort_equals_one_by_one(ModelSpec("spectrogram-cnn", (1, 16, 21), classes=5, feature_width=6))


def test_a_gradient_step_reaches_every_parameter() -> None:
    a_gradient_reaches_every_parameter(ModelSpec("spectrogram-cnn", (1, 16, 21), classes=3))


def test_learns_rising_and_falling_tones() -> None:
    """A tone crosses the bands upwards or downwards, starting at a random time, in noise."""
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    spectrograms = 0.3 * torch.randn(200, 1, 16, 32, generator=source)
    starts = torch.randint(0, 16, (200,), generator=source)
    for sample, (label, start) in enumerate(zip(labels.tolist(), starts.tolist(), strict=True)):
        for step in range(16):
            spectrograms[sample, 0, step if label else 15 - step, start + step] += 2
    assert accuracy_after("spectrogram-cnn", spectrograms, labels, steps=30) > 0.95


def test_refuses_audio() -> None:
    with pytest.raises(UserError, match=r"'spectrogram-cnn': expected images .* found input shape \(1, 8000\)"):
        models.build(ModelSpec("spectrogram-cnn", (1, 8000), classes=3))
