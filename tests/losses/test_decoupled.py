"""Losses on the label and on the other classes: formulas in float64 NumPy, and what is particular to each."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import losses
from tests.losses.conftest import CLASSES, STUDENT, TEACHER, Array, kl, softmax

OTHERS = np.array([[c for c in range(4) if c != label] for label in CLASSES])
Logits = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def logits() -> Logits:
    return torch.tensor(STUDENT, requires_grad=True), torch.tensor(TEACHER), torch.tensor(CLASSES)


def others(logits: Array) -> Array:
    return np.take_along_axis(logits, OTHERS, axis=1)


def tckd(temperature: float) -> Array:
    """Return the divergence of "the label or not" for each sample."""
    p, q = (softmax(logits / temperature)[np.arange(4), CLASSES] for logits in (STUDENT, TEACHER))
    return kl(np.stack([q, 1 - q], axis=1), np.stack([p, 1 - p], axis=1))


def nckd(temperature: float) -> Array:
    """Return the divergence over the other classes for each sample."""
    return kl(softmax(others(TEACHER) / temperature), softmax(others(STUDENT) / temperature))


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (0.5, 2.0, 1.0), (0.0, 1.0, 2.0)])
def test_dkd_equals_the_formula(alpha: float, beta: float, temperature: float, logits: Logits) -> None:
    found = losses.dkd(*logits, alpha=alpha, beta=beta, temperature=temperature).item()
    expected = temperature**2 * (alpha * tckd(temperature) + beta * nckd(temperature)).mean()
    assert found == pytest.approx(expected, rel=1e-9)


def test_defaults_of_dkd_are_the_papers(logits: Logits) -> None:
    expected = losses.dkd(*logits, alpha=1.0, beta=8.0, temperature=4.0).item()
    assert losses.dkd(*logits).item() == expected


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_the_parts_of_dkd(temperature: float, logits: Logits) -> None:
    student, teacher, labels = logits
    parts = 0.0
    for row in range(4):
        one = student[row : row + 1], teacher[row : row + 1], labels[row : row + 1]
        sure = softmax(TEACHER / temperature)[row, CLASSES[row]]
        parts += losses.dkd(*one, alpha=1.0, beta=1.0 - sure, temperature=temperature).item() / 4
    assert losses.kd(student, teacher, temperature=temperature).item() == pytest.approx(parts, rel=1e-9)


def test_two_classes_have_no_other_classes_to_compare(logits: Logits) -> None:
    student, teacher, labels = logits[0][:, :2], logits[1][:, :2], logits[2] % 2
    assert losses.dkd(student, teacher, labels, alpha=0.0).item() == 0.0
    assert losses.not_true(student, teacher, labels).item() == 0.0
    whole = losses.kd(student, teacher, temperature=4.0).item()
    assert losses.dkd(student, teacher, labels).item() == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_not_true_equals_the_formula(temperature: float, logits: Logits) -> None:
    found = losses.not_true(*logits, temperature=temperature).item()
    assert found == pytest.approx(temperature**2 * nckd(temperature).mean(), rel=1e-9)


def test_not_true_by_hand() -> None:
    student, teacher = torch.tensor([[7.0, 0.0, 0.0]]), torch.tensor([[-3.0, np.log(3.0), 0.0]])
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)  # (3/4, 1/4) against (1/2, 1/2)
    assert losses.not_true(student, teacher, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-6)


def test_not_true_does_not_look_at_the_label(logits: Logits) -> None:
    student, teacher, labels = logits
    moved = student + 5 * torch.eye(4, dtype=torch.float64)[labels]
    expected = losses.not_true(student, teacher, labels).item()
    assert losses.not_true(moved, teacher, labels).item() == pytest.approx(expected, rel=1e-12)
    (gradient,) = torch.autograd.grad(losses.not_true(student, teacher, labels), student)
    assert (gradient[torch.arange(4), labels] == 0).all()


@pytest.mark.parametrize("loss", [losses.dkd, losses.not_true])
def test_names_of_classes_do_not_matter(loss: object, logits: Logits) -> None:
    assert callable(loss)
    student, teacher, labels = logits
    order = torch.tensor([3, 1, 0, 2])
    renamed = order.argsort()[labels]
    expected = loss(student, teacher, labels).item()
    assert loss(student[:, order], teacher[:, order], renamed).item() == pytest.approx(expected, rel=1e-12)
    assert loss(teacher, teacher, labels).item() == pytest.approx(0.0, abs=1e-15)
    with pytest.raises(ValueError, match="student: expected at least 2 classes, found 1"):
        loss(student[:, :1], teacher[:, :1], labels * 0)
    with pytest.raises(ValueError, match="labels: expected class numbers from 0 to 3, found 4"):
        loss(student, teacher, labels + 1)
