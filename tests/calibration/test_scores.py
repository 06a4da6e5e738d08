"""Scores without bins, against NumPy formulas written here and numbers worked out by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd import calibration, ensemble
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
of_either = pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))
SENTENCE = (
    "logits or probabilities, shape ``(N, C)``: rows without a negative number that all sum to 1, within the tolerance "
    "of their dtype, are probabilities and taken as they are; anything else is logits, of which the softmax is taken."
)


def rows_for_labels() -> tuple[NDArray[np.float64], Tensor]:
    return PROBABILITIES[:4].copy(), torch.tensor(LABELS[:4])


@every_measure
def test_refuses_other_tables(name: str, measure: Measure) -> None:
    rows, labels = rows_for_labels()
    for shape in ((4,), (0, 5), (4, 0), (4, 5, 1)):
        with pytest.raises(ValueError, match=rf"logits: expected shape \(N, C\).*found \({shape[0]}"):
            measure(torch.zeros(shape), labels)
    for number in (math.nan, math.inf, -math.inf):
        rows[2, 1] = number
        with pytest.raises(ValueError, match=rf"logits: expected finite numbers, found {number} at \(2, 1\)"):
            measure(torch.tensor(rows), labels)
    with pytest.raises(ValueError, match=r"logits: expected floating-point numbers, found torch\.int64"):
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


# --- logits or probabilities


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    rows: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return rows


def numbers(found: object) -> list[float]:
    """Return a measure's numbers; of a reliability diagram, its sums and counts."""
    if isinstance(found, calibration.Reliability):
        return [*found.confidence_sums.tolist(), *found.counts.tolist(), *found.hits.tolist()]
    assert isinstance(found, Tensor)
    return [found.item()]


@of_either
@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0])
def test_logits_and_their_softmax_measure_the_same(measure: Measure, scale: float) -> None:
    logits = scale * np.random.default_rng(7).normal(size=(300, 5))
    labels = torch.tensor(LABELS)
    expected = numbers(measure(torch.tensor(softmax(logits)), labels))
    np.testing.assert_allclose(numbers(measure(torch.tensor(logits), labels)), expected, rtol=1e-12)
    positive = torch.tensor(logits - logits.min(axis=1, keepdims=True))  # no negative number, but other sums than 1
    np.testing.assert_allclose(numbers(measure(positive, labels)), expected, rtol=1e-9)


def test_one_row_with_another_sum_makes_the_batch_logits() -> None:
    """Rows (1/2, 1/2) and (1/4, 1/2): the softmax of the second is 1 / (1 + exp(1/4)) = 0.4378 and 0.5622."""
    small, large = 1 / (1 + math.exp(0.25)), 1 / (1 + math.exp(-0.25))
    rows, labels = torch.tensor([[0.5, 0.5], [0.25, 0.5]], dtype=torch.float64), torch.tensor([0, 1])
    assert brier(rows, labels).item() == pytest.approx((2 * 0.25 + 2 * small**2) / 2, rel=1e-12)
    assert confidence_gap(rows, labels).item() == pytest.approx((0.5 + large) / 2 - 1, rel=1e-12)
    apart = brier(rows[:1], labels[:1]), brier(rows[1:], labels[1:])
    assert sum(part.item() for part in apart) / 2 == pytest.approx(brier(rows, labels).item(), rel=1e-12)


def test_one_negative_number_makes_the_batch_logits() -> None:
    rows = torch.tensor([[0.5, 0.5], [1.25, -0.25]], dtype=torch.float64)  # both sum to 1
    large = 1 / (1 + math.exp(-1.5))
    assert confidence_gap(rows, torch.tensor([0, 0])).item() == pytest.approx((0.5 + large) / 2 - 1, rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "near", "far"),
    [
        (torch.float64, 9e-4, 1.1e-3),
        (torch.float32, 9e-4, 1.1e-3),
        (torch.float16, 1.5e-3, 4e-3),  # 2 eps are 1.95e-3
        (torch.bfloat16, 1.2e-2, 4e-2),  # 2 eps are 1.56e-2
    ],
)
def test_how_far_from_1_a_sum_may_be(dtype: torch.dtype, near: float, far: float) -> None:
    labels = torch.tensor([0])
    for away, as_they_are in ((near, True), (-near, True), (far, False), (-far, False)):
        rows = torch.tensor([[0.75, 0.25 + away]], dtype=torch.float64).to(dtype)
        left = rows.double()[0].tolist()
        expected = left if as_they_are else softmax(np.array([left]))[0].tolist()
        assert confidence_gap(rows, labels).item() == pytest.approx(expected[0] - 1, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10, 1000, 50_000])
def test_rounded_probabilities_of_an_ensemble_are_taken_as_they_are(dtype: torch.dtype, classes: int) -> None:
    logits = 2 * torch.randn(3, 20, classes, generator=torch.Generator().manual_seed(classes)).to(dtype)
    rows, labels = ensemble.mean_probabilities(logits), torch.zeros(20, dtype=torch.int64)
    assert rows.dtype == dtype
    hit = (rows.double().numpy().argmax(axis=1) == 0).mean()
    expected = rows.double().numpy().max(axis=1).mean() - hit
    assert confidence_gap(rows, labels).item() == pytest.approx(expected, rel=1e-6)
    for rule in (ensemble.sharpen, ensemble.reduce_entropy):
        assert rule(rows).dtype == dtype


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_says_so_in_the_same_words(name: str) -> None:
    text = " ".join((getattr(calibration, name).__doc__ or "").split())
    assert SENTENCE in text
