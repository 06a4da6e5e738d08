"""Architectures for signals and strokes: shapes, costs, what they cannot see, and refusals."""

import pytest
import torch

from fedkd import models
from fedkd.errors import UserError
from fedkd.learner.worth import multiplications
from fedkd.models import ModelSpec
from fedkd.models.signal import PointsAndSteps
from tests.models.checks import a_cohort_equals_one_by_one, a_gradient_reaches_every_parameter, accuracy_after

SHAPES = [(1, 2), (2, 7), (2, 8), (3, 64), (3, 128), (1, 257), (1, 8000), (1, 16000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_signals_of_any_length(shape: tuple[int, int]) -> None:
    spec = ModelSpec("signal-cnn", shape, classes=7, feature_width=12)
    model, inputs = models.build(spec), torch.randn(3, *shape)
    assert model.features(inputs).shape == (3, 12)
    assert torch.equal(model(inputs), model(inputs))


def test_a_second_of_audio_is_cheap() -> None:
    """It costs less than three times the multiplications of 256 values, to which the first convolution reduces it."""
    long, short = (multiplications(ModelSpec("signal-cnn", (1, length), classes=10)) for length in (8000, 256))
    assert long < 3_000_000
    assert short < long < 3 * short


@pytest.mark.parametrize(("name", "shape"), [("signal-cnn", (3, 40)), ("signal-cnn", (1, 600)), ("stroke", (2, 8))])
def test_a_cohort_equals_one_by_one(name: str, shape: tuple[int, int]) -> None:
    a_cohort_equals_one_by_one(ModelSpec(name, shape, classes=5, feature_width=6))


@pytest.mark.parametrize(("name", "shape"), [("signal-cnn", (3, 40)), ("stroke", (2, 8))])
def test_a_gradient_step_reaches_every_parameter(name: str, shape: tuple[int, int]) -> None:
    a_gradient_reaches_every_parameter(ModelSpec(name, shape, classes=3))


def test_learns_fast_and_slow_waves() -> None:
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    times, phases = torch.arange(64) / 64, torch.rand(200, 1, 1, generator=source)
    waves = torch.sin(2 * torch.pi * ((3 + 4 * labels[:, None, None]) * times + phases))
    noisy = waves + 0.5 * torch.randn(200, 1, 64, generator=source)
    assert accuracy_after("signal-cnn", noisy, labels, steps=30) > 0.95


def test_learns_which_way_a_pen_turns() -> None:
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    start, turn = torch.rand(200, 1, generator=source), (2 * labels[:, None] - 1) * torch.arange(8) / 8
    angles = 2 * torch.pi * (start + turn)
    circles = torch.stack([angles.cos(), angles.sin()], dim=1) * 40 + 50
    assert accuracy_after("stroke", circles, labels, steps=60) > 0.95


def test_points_and_steps_of_a_square() -> None:
    """Corners of a square of side 2 about (11, 21): the root mean square of its centred coordinates is 1."""
    square = torch.tensor([[[10.0, 12.0, 12.0, 10.0], [20.0, 20.0, 22.0, 22.0]]])
    expected = torch.tensor([[[-1.0, 1, 1, -1], [-1, -1, 1, 1], [2, 0, -2, 0], [0, 2, 0, 0]]])
    torch.testing.assert_close(PointsAndSteps()(square), expected)
    assert torch.isfinite(PointsAndSteps()(torch.full((1, 2, 8), 5.0))).all()


def test_a_stroke_is_the_same_wherever_and_however_large() -> None:
    model = models.build(ModelSpec("stroke", (2, 8), classes=3)).double()
    strokes = torch.rand(4, 2, 8, dtype=torch.float64) * 100
    moved = 0.5 * strokes + torch.tensor([[7.0], [-90.0]])
    torch.testing.assert_close(model(moved), model(strokes), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("signal-cnn", (64,), r"signals \(channels, length\) of at least 2 values, found input shape \(64,\)"),
        ("signal-cnn", (1, 8, 8), "signals"),
        ("signal-cnn", (3, 1), "of at least 2 values"),
        ("stroke", (3, 8), r"pen strokes \(2, points\) of at least 2 points, found input shape \(3, 8\)"),
        ("stroke", (16,), "signals"),
    ],
)
def test_refuses_other_shapes(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=f"model '{name}': expected .*{message}"):
        models.build(ModelSpec(name, shape, classes=3))
