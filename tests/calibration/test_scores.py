"""Scores without bins, against NumPy formulas written here and numbers worked out by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd import calibration
from fedkd.calibration import brier, confidence_gap, entropy, negative_log_likelihood

RNG = np.random.default_rng(0)
PROBABILITIES = RNG.dirichlet([0.4] * 5, size=300)
LABELS = RNG.integers(0, 5, 300)


def test_brier() -> None:
    expected = np.mean(np.sum((PROBABILITIES - np.eye(5)[LABELS]) ** 2, axis=1))
    np.testing.assert_allclose(brier(torch.tensor(PROBABILITIES), torch.tensor(LABELS)), expected, rtol=1e-9)
    certain = torch.tensor([[1.0, 0.0]])
    assert brier(certain, torch.tensor([0])).item() == 0
    assert brier(certain, torch.tensor([1])).item() == 2


def test_negative_log_likelihood() -> None:
    expected = -np.mean(np.log(PROBABILITIES[np.arange(300), LABELS]))
    logits = torch.tensor(np.log(PROBABILITIES) + 7)  # a constant per row changes nothing
    np.testing.assert_allclose(negative_log_likelihood(logits, torch.tensor(LABELS)), expected, rtol=1e-9)


def test_entropy() -> None:
    expected = -np.mean(np.sum(PROBABILITIES * np.log(PROBABILITIES), axis=1))
    np.testing.assert_allclose(entropy(torch.tensor(PROBABILITIES)), expected, rtol=1e-9)
    assert entropy(torch.full((2, 8), 1 / 8)).item() == pytest.approx(math.log(8))
    assert entropy(torch.tensor([[1.0, 0.0]])).item() == 0


def test_confidence_gap() -> None:
    expected = PROBABILITIES.max(axis=1).mean() - (PROBABILITIES.argmax(axis=1) == LABELS).mean()
    found = confidence_gap(torch.tensor(PROBABILITIES), torch.tensor(LABELS))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    timid = torch.tensor([[0.625, 0.375], [0.625, 0.375]])
    assert confidence_gap(timid, torch.tensor([0, 0])).item() == -0.375
    assert confidence_gap(timid, torch.tensor([1, 1])).item() == 0.625


def test_the_gap_is_never_larger_than_the_calibration_error() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        rows, labels = torch.tensor(rng.dirichlet([0.5] * 4, size=60)), torch.tensor(rng.integers(0, 4, 60))
        error = calibration.expected_calibration_error(rows, labels)
        assert confidence_gap(rows, labels).abs() <= error + 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_single(dtype: torch.dtype) -> None:
    """Rows of bfloat16 are up to 0.4 % away from a sum of 1, and so are taken for what they are."""
    rows, labels = torch.tensor(PROBABILITIES).to(dtype), torch.tensor(LABELS)
    numbers = rows.double().numpy()
    expected = {
        brier: np.mean(np.sum((numbers - np.eye(5)[LABELS]) ** 2, axis=1)),
        confidence_gap: numbers.max(axis=1).mean() - (numbers.argmax(axis=1) == LABELS).mean(),
    }
    for measure, value in expected.items():
        np.testing.assert_allclose(measure(rows, labels), value, rtol=1e-5)
    surprise = -np.sum(np.where(numbers > 0, numbers * np.log(np.where(numbers > 0, numbers, 1)), 0), axis=1)
    np.testing.assert_allclose(entropy(rows), surprise.mean(), rtol=1e-5)
    logits = 4 * torch.tensor(RNG.normal(size=(300, 5))).to(dtype)
    exact = np.exp(logits.double().numpy())
    likelihood = np.log(exact[np.arange(300), LABELS] / exact.sum(axis=1)).mean()
    np.testing.assert_allclose(negative_log_likelihood(logits, labels), -likelihood, rtol=1e-5)
    with pytest.raises(ValueError, match="expected rows that sum to 1, found one that is"):
        brier(1.02 * rows, labels)


Measure = Callable[[Tensor, Tensor], object]
MEASURES: dict[str, Measure] = {
    "brier": brier,
    "entropy": lambda rows, labels: entropy(rows),
    "confidence_gap": confidence_gap,
    "reliability": calibration.reliability,
    "expected_calibration_error": calibration.expected_calibration_error,
    "maximum_calibration_error": calibration.maximum_calibration_error,
    "class_wise_calibration_error": calibration.class_wise_calibration_error,
    "adaptive_calibration_error": calibration.adaptive_calibration_error,
}
OF_LOGITS: dict[str, Measure] = {
    "negative_log_likelihood": negative_log_likelihood,
    "fit_temperature": calibration.fit_temperature,
    "fit_vector_scaling": calibration.fit_vector_scaling,
    "fit_matrix_scaling": calibration.fit_matrix_scaling,
}
EVERY = MEASURES | OF_LOGITS
every_measure = pytest.mark.parametrize(("name", "measure"), EVERY.items(), ids=list(EVERY))
of_probabilities = pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))


def rows_for_labels() -> tuple[NDArray[np.float64], Tensor]:
    return PROBABILITIES[:4].copy(), torch.tensor(LABELS[:4])


@every_measure
def test_refuses_other_tables(name: str, measure: Measure) -> None:
    argument = "logits" if name in OF_LOGITS else "probabilities"
    rows, labels = rows_for_labels()
    for shape in ((4,), (0, 5), (4, 0), (4, 5, 1)):
        with pytest.raises(ValueError, match=rf"{argument}: expected shape \(N, C\).*found \({shape[0]}"):
            measure(torch.zeros(shape), labels)
    for number in (math.nan, math.inf, -math.inf):
        rows[2, 1] = number
        with pytest.raises(ValueError, match=rf"{argument}: expected finite numbers, found {number} at \(2, 1\)"):
            measure(torch.tensor(rows), labels)
    with pytest.raises(ValueError, match=rf"{argument}: expected floating-point numbers, found torch\.int64"):
        measure(torch.ones(4, 1, dtype=torch.int64), labels)


@every_measure
def test_refuses_other_labels(name: str, measure: Measure) -> None:
    if name == "entropy":
        return  # has none
    rows, labels = torch.tensor(rows_for_labels()[0]), rows_for_labels()[1]
    with pytest.raises(ValueError, match=r"labels: expected shape \(4,\), found \(3,\)"):
        measure(rows, labels[1:])
    with pytest.raises(ValueError, match=r"labels: expected class numbers of type int64, found torch\.float32"):
        measure(rows, labels.float())
    for label in (-1, 5):
        labels[0] = label
        with pytest.raises(ValueError, match=f"labels: expected class numbers from 0 to 4, found .*{label}"):
            measure(rows, labels)


@of_probabilities
def test_refuses_logits(measure: Measure) -> None:
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"probabilities: expected no number below 0, found -1\.0; take the softmax"):
        measure(torch.tensor([[2.0, -1.0], [1.0, 0.0]]), labels)
    # Small positive logits look like probabilities, one by one, but rows do not sum to 1.
    with pytest.raises(ValueError, match=r"probabilities: expected rows that sum to 1, found one that is 0\.25 away"):
        measure(torch.tensor([[0.5, 0.5], [0.25, 0.5]]), labels)
