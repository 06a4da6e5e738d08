"""Losses on labels: formulas in float64 NumPy, and what is particular to each."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import losses
from tests.losses.conftest import CLASSES, STUDENT, Array, kl, softmax

LABEL_ROWS = np.eye(4)[CLASSES]


def test_cross_entropy_equals_the_formula(student: Tensor, labels: Tensor) -> None:
    expected = -np.log(softmax(STUDENT)[np.arange(4), CLASSES]).mean()
    assert losses.cross_entropy(student, labels).item() == pytest.approx(expected, rel=1e-9)


def test_cross_entropy_by_hand() -> None:
    assert losses.cross_entropy(torch.zeros(3, 8), torch.tensor([0, 7, 3])).item() == pytest.approx(np.log(8))


@pytest.mark.parametrize(("bad", "found"), [([2, 0, -100, 1], "-100"), ([2, 0, 4, 1], "4")])
def test_labels_out_of_range_are_refused(student: Tensor, bad: list[int], found: str) -> None:
    for loss in (losses.cross_entropy, losses.label_smoothing, losses.virtual_teacher):
        with pytest.raises(ValueError, match=f"labels: expected class numbers from 0 to 3, found {found}"):
            loss(student, torch.tensor(bad))


def test_labels_that_are_no_numbers_of_classes_are_refused(student: Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels: expected class numbers of type int64, found torch\.float64"):
        losses.cross_entropy(student, torch.ones(4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"labels: expected shape \(4,\), found \(4, 4\)"):
        losses.cross_entropy(student, torch.eye(4))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_equals_the_formula(smoothing: float, student: Tensor, labels: Tensor) -> None:
    target = (1 - smoothing) * LABEL_ROWS + smoothing / 4
    expected = -(target * np.log(softmax(STUDENT))).sum(axis=1).mean()
    assert losses.label_smoothing(student, labels, smoothing=smoothing).item() == pytest.approx(expected, rel=1e-9)
    theirs = torch.nn.functional.cross_entropy(student, labels, label_smoothing=smoothing)
    assert theirs.item() == pytest.approx(expected, rel=1e-9)


def test_no_label_smoothing_is_cross_entropy(student: Tensor, labels: Tensor) -> None:
    expected = losses.cross_entropy(student, labels).item()
    assert losses.label_smoothing(student, labels, smoothing=0.0).item() == pytest.approx(expected, rel=1e-12)


def virtual(confidence: float) -> Array:
    """Return the virtual teacher's probabilities."""
    rows: Array = np.where(LABEL_ROWS == 1, confidence, (1 - confidence) / 3)
    return rows


@pytest.mark.parametrize(("confidence", "temperature"), [(0.9, 20.0), (0.99, 1.0), (0.9, 4.0)])
def test_virtual_teacher_equals_the_formula(
    confidence: float, temperature: float, student: Tensor, labels: Tensor
) -> None:
    found = losses.virtual_teacher(student, labels, confidence=confidence, temperature=temperature).item()
    teacher = softmax(np.log(virtual(confidence)) / temperature)
    expected = kl(teacher, softmax(STUDENT / temperature)).mean()
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("confidence", "temperature"), [(0.99, 20.0), (0.9, 1.0)])
def test_virtual_teacher_as_in_code(confidence: float, temperature: float, student: Tensor, labels: Tensor) -> None:
    found = losses.virtual_teacher(
        student, labels, confidence=confidence, temperature=temperature, variant="code"
    ).item()
    teacher = softmax(virtual(confidence) / temperature)
    expected = (teacher * np.log(teacher / softmax(STUDENT))).sum() / 16
    assert found == pytest.approx(expected, rel=1e-9)


def test_virtual_teacher_unsoftened_is_label_smoothing_up_to_a_constant(student: Tensor, labels: Tensor) -> None:
    found = losses.virtual_teacher(student, labels, confidence=0.9, temperature=1.0)
    smoothing = 0.1 * 4 / 3  # which leaves 0.9 on the label
    expected = losses.label_smoothing(student, labels, smoothing=smoothing)
    teacher = virtual(0.9)
    assert (expected - found).item() == pytest.approx(-(teacher * np.log(teacher)).sum() / 4, rel=1e-9)


def test_virtual_teacher_is_zero_where_the_student_is_as_confident(labels: Tensor) -> None:
    student = torch.tensor(np.log(virtual(0.9)))
    for temperature in (1.0, 20.0):
        found = losses.virtual_teacher(student, labels, temperature=temperature).item()
        assert found == pytest.approx(0.0, abs=1e-15)


def test_a_virtual_teacher_without_doubt_is_the_label(student: Tensor, labels: Tensor) -> None:
    found = losses.virtual_teacher(student, labels, confidence=1.0, temperature=1.0).item()
    assert found == pytest.approx(losses.cross_entropy(student, labels).item(), rel=1e-12)


def test_settings_out_of_range_are_refused(student: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"smoothing: expected a number from 0 to 1, found 1\.5"):
        losses.label_smoothing(student, labels, smoothing=1.5)
    with pytest.raises(ValueError, match=r"confidence: expected a number from 0 to 1, found -0\.1"):
        losses.virtual_teacher(student, labels, confidence=-0.1)
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0"):
        losses.virtual_teacher(student, labels, temperature=0.0)
    with pytest.raises(ValueError, match="variant: expected one of 'paper', 'code', found 'official'"):
        losses.virtual_teacher(student, labels, variant="official")
    with pytest.raises(ValueError, match="student: expected at least 2 classes, found 1"):
        losses.virtual_teacher(student[:, :1], labels * 0)
