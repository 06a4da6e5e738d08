"""The geometric median: against a slow descent in NumPy, its condition of optimality, and what it withstands."""

import itertools
import math

import numpy as np
import pytest
import torch

from fedkd import ensemble
from tests.ensemble.conftest import LOGITS, Array, softmax


def to_logits(rows: Array) -> torch.Tensor:
    """Logits whose softmax is these probabilities."""
    return torch.tensor(rows).clamp(min=1e-300).log()


def sum_of_distances(at: Array, points: Array) -> float:
    return float(np.linalg.norm(points - at, axis=-1).sum())


def plain_weiszfeld(points: Array, steps: int = 20_000) -> Array:
    at: Array = points.mean(axis=0)
    for _ in range(steps):
        pull = 1 / np.linalg.norm(points - at, axis=1)
        at = (pull[:, None] * points).sum(axis=0) / pull.sum()
    return at


def test_agrees_with_a_slow_descent() -> None:
    found = ensemble.geometric_median(torch.tensor(LOGITS))
    expected = [plain_weiszfeld(points) for points in softmax(LOGITS).transpose(1, 0, 2)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_no_direction_leads_down() -> None:
    values = np.random.default_rng(0)
    for teachers, classes, sharpness in itertools.product((3, 4, 20, 51), (3, 10), (0.05, 0.5, 5.0)):
        points = values.dirichlet([sharpness] * classes, size=(20, teachers))
        medians = ensemble.geometric_median(to_logits(points.transpose(1, 0, 2))).numpy()
        for at, cloud in zip(medians, points, strict=True):
            away = np.linalg.norm(cloud - at, axis=1)
            apart = away > 1e-5  # directions to what is nearer are not known to so many digits
            pull = ((cloud - at)[apart] / away[apart, None]).sum(axis=0)
            # No pull, or points here whose own hold is stronger than the pull of all others.
            assert np.linalg.norm(pull) <= (~apart).sum() + 1e-7
            assert sum_of_distances(at, cloud) <= min(sum_of_distances(point, cloud) for point in cloud) * (1 + 1e-12)


@pytest.mark.parametrize("liars", range(5))
def test_what_most_say_in_unison_is_the_median(liars: int) -> None:
    points = np.tile([0.7, 0.1, 0.2], (9, 1, 1))
    points[:liars] = np.random.default_rng(1).dirichlet([0.2] * 3, size=(liars, 1))
    found = ensemble.geometric_median(to_logits(points))
    np.testing.assert_allclose(found, [[0.7, 0.1, 0.2]], rtol=1e-9)


@pytest.mark.parametrize("liars", [5, 6])
def test_with_half_of_the_teachers_it_breaks_down(liars: int) -> None:
    points = np.tile([0.7, 0.1, 0.2], (9, 1, 1))
    points[:liars] = [0.0, 1.0, 0.0]
    assert ensemble.geometric_median(to_logits(points)).argmax().item() == 1


def test_liars_move_it_no_farther_than_documented() -> None:
    values, centre = np.random.default_rng(2), np.full(5, 0.2)
    for liars in range(1, 10):
        honest = values.dirichlet([200.0] * 5, size=(20 - liars, 30))
        lies = np.tile(np.eye(5)[honest.mean(axis=0).argmin(axis=1)], (liars, 1, 1))  # the least likely class
        found = ensemble.geometric_median(to_logits(np.concatenate([lies, honest]))).numpy()
        reach = np.linalg.norm(honest - centre, axis=2).max(axis=0)
        assert (np.linalg.norm(found - centre, axis=1) <= 2 * (20 - liars) / (20 - 2 * liars) * reach).all()
        mean = np.concatenate([lies, honest]).mean(axis=0)
        assert (np.linalg.norm(found - centre, axis=1) < np.linalg.norm(mean - centre, axis=1)).all()


def test_three_far_apart_meet_under_equal_angles() -> None:
    # The Fermat point of an equilateral triangle is its centre; with a wide angle (over 120 degrees) it is the vertex.
    corners = np.eye(3)[:, None]
    np.testing.assert_allclose(ensemble.geometric_median(to_logits(corners)), [[1 / 3] * 3], rtol=1e-9)
    wide = np.array([[[0.8, 0.1, 0.1]], [[0.1, 0.8, 0.1]], [[0.44, 0.44, 0.12]]])
    np.testing.assert_allclose(ensemble.geometric_median(to_logits(wide)), wide[2], rtol=1e-12)


def test_on_a_line_it_is_the_median() -> None:
    first = np.random.default_rng(3).random((9, 40))
    found = ensemble.geometric_median(to_logits(np.stack([first, 1 - first], axis=2)))
    np.testing.assert_allclose(found[:, 0], np.median(first, axis=0), rtol=1e-9)


def test_an_even_number_on_a_line_gives_a_point_between_the_middle_two() -> None:
    first = np.sort(np.random.default_rng(4).random((8, 40)), axis=0)
    found = ensemble.geometric_median(to_logits(np.stack([first, 1 - first], axis=2)))[:, 0].numpy()
    assert ((first[3] - 1e-9 <= found) & (found <= first[4] + 1e-9)).all()


def test_it_leaves_a_point_where_it_starts_by_chance() -> None:
    # The mean of these is the fifth point, which is not their median.
    points = np.array([[0.9, 0.05, 0.05], [0.1, 0.5, 0.4], [0.1, 0.4, 0.5], [0.1, 0.45, 0.45]])
    points = np.concatenate([points, points.mean(axis=0, keepdims=True)])[:, None]
    found = ensemble.geometric_median(to_logits(points)).numpy()[0]
    nudged = plain_weiszfeld(points[:, 0] + 1e-13 * np.random.default_rng(5).normal(size=(5, 3)))
    assert sum_of_distances(found, points[:, 0]) < sum_of_distances(points[-1, 0], points[:, 0])
    np.testing.assert_allclose(found, nudged, atol=1e-8)


def test_fewer_iterations_come_less_near() -> None:
    logits = torch.tensor(LOGITS)
    exact = ensemble.geometric_median(logits)
    errors = [(ensemble.geometric_median(logits, iterations=n) - exact).abs().max() for n in (1, 5, 12)]
    assert errors[0] > errors[1] > errors[2]
    assert (ensemble.geometric_median(logits, tolerance=1e-3) - exact).abs().max() > 1e-8


def test_a_block_of_samples_does_not_matter() -> None:
    many = torch.randn(100, 1201, 10, generator=torch.Generator().manual_seed(0))
    found = ensemble.geometric_median(many)
    assert torch.equal(found[499:502], ensemble.geometric_median(many[:, 499:502]))


def test_refuses_settings_out_of_range() -> None:
    logits = torch.zeros(2, 3, 4)
    for iterations in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"iterations: expected an integer of 1 or more, found {iterations}"):
            ensemble.geometric_median(logits, iterations=iterations)  # type: ignore[arg-type]
    for tolerance in (-1e-9, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"tolerance: expected a finite number, 0 or above, found {tolerance}"):
            ensemble.geometric_median(logits, tolerance=tolerance)
