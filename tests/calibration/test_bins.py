"""Errors by bins against NumPy, and against numbers worked out by hand, in both conventions for edges."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedkd.calibration import (
    adaptive_calibration_error,
    class_wise_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability,
)
from fedkd.calibration.bins import Closed

Array = NDArray[np.float64]
CONVENTIONS: tuple[Closed, Closed] = ("left", "right")


@pytest.fixture
def predictions() -> tuple[Array, NDArray[np.int64]]:
    """Probabilities, many of them on an edge of 10 or 15 bins, some exactly 0 or 1."""
    rng = np.random.default_rng(0)
    edges = rng.integers(0, 31, 100) / 30
    rows = np.zeros((400, 5))
    rows[:300] = rng.dirichlet([0.4] * 5, size=300)
    rows[300:, 0], rows[300:, 3] = edges, 1 - edges
    return rows, rng.integers(0, 5, 400)


def gaps_by_hand(confidence: Array, hit: NDArray[np.bool_], bins: int, closed: str) -> list[tuple[float, float]]:
    """Share of samples and distance from accuracy for each bin, one comparison after the other."""
    found = []
    for b in range(bins + 1):
        low, high = b / bins, (b + 1) / bins
        if closed == "left":
            member = (confidence >= low) & (confidence < high) if b < bins else confidence == 1
        else:
            member = (confidence > low) & (confidence <= high) | ((confidence == 0) & (b == 0))
        if member.any():
            found.append((float(member.mean()), float(abs(hit[member].mean() - confidence[member].mean()))))
    return found


@pytest.mark.parametrize("closed", CONVENTIONS)
@pytest.mark.parametrize("bins", [1, 2, 10, 15, 97])
def test_errors_are_those_of_the_bins(predictions: tuple[Array, NDArray[np.int64]], bins: int, closed: Closed) -> None:
    rows, labels = predictions
    inputs = torch.tensor(rows), torch.tensor(labels)
    gaps = gaps_by_hand(rows.max(axis=1), rows.argmax(axis=1) == labels, bins, closed)
    expected = sum(share * gap for share, gap in gaps)
    np.testing.assert_allclose(expected_calibration_error(*inputs, bins=bins, closed=closed), expected, rtol=1e-9)
    largest = max(gap for _, gap in gaps)
    np.testing.assert_allclose(maximum_calibration_error(*inputs, bins=bins, closed=closed), largest, rtol=1e-9)
    by_class = [
        sum(share * gap for share, gap in gaps_by_hand(rows[:, c], labels == c, bins, closed)) for c in range(5)
    ]
    found = class_wise_calibration_error(*inputs, bins=bins, closed=closed)
    np.testing.assert_allclose(found, np.mean(by_class), rtol=1e-9)


def by_equal_ranges(confidence: Array, hit: NDArray[np.bool_], bins: int) -> float:
    pairs = np.array(sorted(zip(confidence.tolist(), hit.tolist(), strict=True)))
    return float(np.mean([abs(part[:, 0].mean() - part[:, 1].mean()) for part in np.array_split(pairs, bins)]))


@pytest.mark.parametrize("bins", [1, 7, 15, 400])
def test_adaptive_error(predictions: tuple[Array, NDArray[np.int64]], bins: int) -> None:
    rows, labels = predictions
    inputs = torch.tensor(rows), torch.tensor(labels)
    expected = np.mean([by_equal_ranges(rows[:, c], labels == c, bins) for c in range(5)])
    np.testing.assert_allclose(adaptive_calibration_error(*inputs, bins=bins), expected, rtol=1e-9)
    expected = by_equal_ranges(rows.max(axis=1), rows.argmax(axis=1) == labels, bins)
    np.testing.assert_allclose(adaptive_calibration_error(*inputs, bins=bins, of="predictions"), expected, rtol=1e-9)
    shuffled = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    again = adaptive_calibration_error(inputs[0][shuffled], inputs[1][shuffled], bins=bins, of="predictions")
    np.testing.assert_allclose(again, expected, rtol=1e-9)


def test_more_ranges_than_samples_are_as_many_as_samples() -> None:
    rows, labels = torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([0, 1])
    assert adaptive_calibration_error(rows, labels, of="predictions").item() == (0.25 + 0.5) / 2


def test_errors_by_hand() -> None:
    # Two bins [0, 0.5), [0.5, 1): confidences 0.4 (right) and 0.6, 0.8 (one right): (|1 - 0.4| + 2 |0.5 - 0.7|) / 3
    rows = torch.tensor([[0.4, 0.3, 0.3], [0.6, 0.2, 0.2], [0.8, 0.1, 0.1]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    assert expected_calibration_error(rows, labels, bins=2).item() == pytest.approx(1 / 3)
    assert maximum_calibration_error(rows, labels, bins=2).item() == pytest.approx(0.6)


def test_a_confidence_on_an_edge_and_one_of_exactly_one() -> None:
    # 0.5 (right), 0.75 (wrong), 1.0 (wrong), in two bins.
    rows = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1])
    # [0, .5), [.5, 1), {1}: 0.5 and 0.75 share a bin, 1 stands alone: (2 |0.5 - 0.625| + 1) / 3
    assert expected_calibration_error(rows, labels, bins=2).item() == pytest.approx((0.25 + 1) / 3)
    assert maximum_calibration_error(rows, labels, bins=2).item() == 1
    # [0, .5], (.5, 1]: 0.5 is alone, 0.75 and 1 share a bin: (0.5 + 2 * 0.875) / 3
    assert expected_calibration_error(rows, labels, bins=2, closed="right").item() == pytest.approx(2.25 / 3)
    assert maximum_calibration_error(rows, labels, bins=2, closed="right").item() == pytest.approx(0.875)


def test_closed_left_is_what_torchmetrics_does() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    rng = np.random.default_rng(1)
    rows, labels = torch.tensor(rng.dirichlet([0.3] * 4, size=500)), torch.tensor(rng.integers(0, 4, 500))
    rows[:50] = torch.nn.functional.one_hot(rows[:50].argmax(dim=1), 4).double()  # saturated
    labels[rows.amax(dim=1) > 0.93] = rows.argmax(dim=1)[rows.amax(dim=1) > 0.93]
    labels[:50] = (rows[:50].argmax(dim=1) + 1) % 4  # certain and wrong, while the nearly certain are right
    for norm, error in (("l1", expected_calibration_error), ("max", maximum_calibration_error)):
        theirs = multiclass_calibration_error(rows, labels, 4, n_bins=15, norm=norm)  # type: ignore[arg-type]
        assert error(rows, labels).item() == pytest.approx(theirs.item(), abs=1e-6)
        assert error(rows, labels, closed="right").item() != pytest.approx(theirs.item(), abs=1e-3)


@pytest.mark.parametrize("closed", CONVENTIONS)
def test_bins_of_parts_are_added(predictions: tuple[Array, NDArray[np.int64]], closed: Closed) -> None:
    rows, labels = map(torch.tensor, predictions)
    labels[:90] = rows[:90].argmax(dim=1)  # one party is too timid, the other too bold
    whole = reliability(rows, labels, closed=closed)
    parts = [reliability(rows[part], labels[part], closed=closed) for part in (slice(90), slice(90, None))]
    merged = parts[0].merged(parts[1])
    assert torch.equal(merged.counts, whole.counts)
    assert torch.equal(merged.hits, whole.hits)
    np.testing.assert_allclose(merged.expected_error, whole.expected_error, rtol=1e-9)
    mean_of_errors = sum(part.expected_error * part.counts.sum() for part in parts) / 400
    assert mean_of_errors > whole.expected_error + 1e-3


def test_a_diagram_has_counts_confidences_and_accuracies(predictions: tuple[Array, NDArray[np.int64]]) -> None:
    rows, labels = predictions
    found = reliability(torch.tensor(rows), torch.tensor(labels), bins=10)
    confidence, hit = rows.max(axis=1), rows.argmax(axis=1) == labels
    assert found.edges.tolist() == [b / 10 for b in range(11)] + [1.0]
    assert found.counts.sum() == 400
    for b, (count, mean, accuracy) in enumerate(zip(found.counts, found.confidences, found.accuracies, strict=True)):
        member = (confidence >= b / 10) & (confidence < (b + 1) / 10 if b < 10 else confidence == 1)
        assert count == member.sum()
        if count:
            np.testing.assert_allclose([mean, accuracy], [confidence[member].mean(), hit[member].mean()], rtol=1e-9)
        else:
            assert mean.isnan()
            assert accuracy.isnan()


def test_a_perfectly_calibrated_classifier_has_no_error() -> None:
    rows = torch.tensor([[0.75, 0.25]] * 8, dtype=torch.float64)
    labels = torch.tensor([0] * 6 + [1] * 2)
    for error in (expected_calibration_error, maximum_calibration_error, class_wise_calibration_error):
        assert error(rows, labels).item() == 0


def test_a_rounding_error_above_one_is_one() -> None:
    rows = torch.tensor([[1 + 2**-52, 0.0], [1.0, 0.0]], dtype=torch.float64)
    for closed in CONVENTIONS:
        assert expected_calibration_error(rows, torch.tensor([0, 0]), closed=closed).item() == 0


def test_refuses_settings_out_of_range() -> None:
    rows, labels = torch.tensor([[0.75, 0.25]]), torch.tensor([0])
    for bins in (0, -3, 2.5, True):
        with pytest.raises(ValueError, match=f"bins: expected an integer of 1 or more, found {bins}"):
            expected_calibration_error(rows, labels, bins=bins)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="closed: expected one of 'left', 'right', found 'both'"):
        class_wise_calibration_error(rows, labels, closed="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of: expected one of 'classes', 'predictions', found 'rows'"):
        adaptive_calibration_error(rows, labels, of="rows")  # type: ignore[arg-type]
    ten, fifteen = reliability(rows, labels, bins=10), reliability(rows, labels)
    with pytest.raises(ValueError, match="other: expected 11 bins closed left, found 16 bins closed left"):
        ten.merged(fifteen)
    with pytest.raises(ValueError, match="other: expected 16 bins closed left, found 15 bins closed right"):
        fifteen.merged(reliability(rows, labels, closed="right"))


def test_importing_does_not_import_torchmetrics() -> None:
    code = "import sys, fedkd.calibration; sys.exit('torchmetrics' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
