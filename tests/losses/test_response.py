"""Losses on outputs as they are: formulas in float64 NumPy, and what is particular to each."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import losses
from tests.losses.conftest import CLASSES, STUDENT, TEACHER, Array, kl, softmax


@pytest.fixture
def probabilities(teacher: Tensor) -> Tensor:
    return torch.softmax(teacher, dim=1)


def kd(temperature: float) -> float:
    return float(temperature**2 * kl(softmax(TEACHER / temperature), softmax(STUDENT / temperature)).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_equals_the_formula(temperature: float, student: Tensor, teacher: Tensor) -> None:
    found = losses.kd(student, teacher, temperature=temperature).item()
    assert found == pytest.approx(kd(temperature), rel=1e-9)


def test_kd_by_hand() -> None:
    even, odd = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])  # (1/2, 1/2) and (3/4, 1/4)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert losses.kd(even, odd).item() == pytest.approx(expected, rel=1e-6)


def test_kd_ignores_a_shift_of_the_logits(student: Tensor, teacher: Tensor) -> None:
    shift = torch.tensor([[5.0], [-3.0], [0.5], [100.0]], dtype=torch.float64)
    expected = losses.kd(student, teacher, temperature=2.0).item()
    assert losses.kd(student + shift, teacher, temperature=2.0).item() == pytest.approx(expected, rel=1e-9)
    assert losses.kd(student, teacher + shift, temperature=2.0).item() == pytest.approx(expected, rel=1e-9)


def test_kd_tends_to_matching_centred_logits(student: Tensor, teacher: Tensor) -> None:
    temperature = 1e4
    (gradient,) = torch.autograd.grad(losses.kd(student, teacher, temperature=temperature), student)
    centred = (STUDENT - STUDENT.mean(axis=1, keepdims=True)) - (TEACHER - TEACHER.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(gradient.numpy(), centred / 4 / 4, atol=10 / temperature)  # C = 4, N = 4


def test_kd_is_not_symmetric(student: Tensor, teacher: Tensor) -> None:
    assert losses.kd(student, teacher).item() != pytest.approx(losses.kd(teacher, student).item(), rel=1e-3)


def test_kd_is_batchmean_as_pytorch_has_it(student: Tensor, teacher: Tensor, probabilities: Tensor) -> None:
    log_student = torch.log_softmax(student, dim=1)
    found = losses.kd(student, teacher).item()
    element_mean = torch.nn.functional.kl_div(log_student, probabilities, reduction="none").mean().item()
    assert found == pytest.approx(4 * element_mean, rel=1e-9)  # C = 4


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float, student: Tensor, teacher: Tensor) -> None:
    for loss in (losses.kd, losses.binary_kd):
        with pytest.raises(ValueError, match="temperature: expected a finite number above 0, found"):
            loss(student, teacher, temperature=temperature)


def test_logit_losses_equal_their_formulas(student: Tensor, teacher: Tensor) -> None:
    assert losses.logit_mae(student, teacher).item() == pytest.approx(np.abs(STUDENT - TEACHER).sum() / 16, rel=1e-9)
    assert losses.logit_mse(student, teacher).item() == pytest.approx(((STUDENT - TEACHER) ** 2).sum() / 16, rel=1e-9)


def test_soft_losses_equal_their_formulas(student: Tensor, probabilities: Tensor) -> None:
    q = softmax(TEACHER)
    expected = -(q * np.log(softmax(STUDENT))).sum(axis=1).mean()
    assert losses.soft_cross_entropy(student, probabilities).item() == pytest.approx(expected, rel=1e-9)
    entropy = -(q * np.log(q)).sum(axis=1).mean()
    assert losses.kl_to_probabilities(student, probabilities).item() == pytest.approx(expected - entropy, rel=1e-9)


def test_certain_teachers_are_labels(student: Tensor) -> None:
    certain = torch.eye(4, dtype=torch.float64)[CLASSES]
    expected = losses.cross_entropy(student, torch.tensor(CLASSES)).item()
    assert losses.soft_cross_entropy(student, certain).item() == pytest.approx(expected, rel=1e-12)
    assert losses.kl_to_probabilities(student, certain).item() == pytest.approx(expected, rel=1e-12)  # 0 log 0 = 0


def test_soft_cross_entropy_and_divergence_pull_alike(student: Tensor, probabilities: Tensor) -> None:
    (one,) = torch.autograd.grad(losses.soft_cross_entropy(student, probabilities), student)
    (other,) = torch.autograd.grad(losses.kl_to_probabilities(student, probabilities), student)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-16)


def binary_kd(temperature: float) -> Array:
    """Return the divergence of each sample and class."""
    p, q = (1 / (1 + np.exp(-logits / temperature)) for logits in (STUDENT, TEACHER))
    per_class: Array = temperature**2 * (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)))
    return per_class


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_binary_kd_equals_the_formula(temperature: float, student: Tensor, teacher: Tensor) -> None:
    found = losses.binary_kd(student, teacher, temperature=temperature).item()
    assert found == pytest.approx(binary_kd(temperature).sum() / 4, rel=1e-9)
    mean = losses.binary_kd(student, teacher, temperature=temperature, classes="mean").item()
    assert mean == pytest.approx(binary_kd(temperature).sum() / 16, rel=1e-9)


def test_binary_kd_of_one_class_is_kd_against_zero(student: Tensor, teacher: Tensor) -> None:
    ours, theirs = student[:, :1], teacher[:, :1]
    pairs = [torch.cat([logits, torch.zeros_like(logits)], dim=1) for logits in (ours, theirs)]
    assert losses.binary_kd(ours, theirs).item() == pytest.approx(losses.kd(*pairs).item(), rel=1e-12)


@pytest.mark.parametrize("loss", [losses.kd, losses.logit_mae, losses.logit_mse, losses.binary_kd])
def test_agreement_costs_nothing(loss: object, teacher: Tensor) -> None:
    assert callable(loss)
    assert loss(teacher, teacher).item() == 0.0


def test_minima_of_the_soft_losses(teacher: Tensor, probabilities: Tensor) -> None:
    q = softmax(TEACHER)
    assert losses.soft_cross_entropy(teacher, probabilities).item() == pytest.approx(-(q * np.log(q)).sum() / 4)
    assert losses.kl_to_probabilities(teacher, probabilities).item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("loss", [losses.soft_cross_entropy, losses.kl_to_probabilities])
def test_logits_are_no_probabilities(loss: object, student: Tensor, teacher: Tensor) -> None:
    assert callable(loss)
    with pytest.raises(ValueError, match=r"^teacher_prob.*: expected no number below 0, found -0\.5 at \(0, 1\)\.$"):
        loss(student, teacher)
    with losses.values_unchecked():
        loss(student, teacher)


def test_binary_kd_refuses_another_reduction(student: Tensor, teacher: Tensor) -> None:
    with pytest.raises(ValueError, match="classes: expected one of 'sum', 'mean', found 'batchmean'"):
        losses.binary_kd(student, teacher, classes="batchmean")


# --- high temperatures


def in_limit(student: Array, teacher: Array) -> float:
    """``T^2 KL`` for ``T`` to infinity: half the variance over the classes of the gaps between the logits."""
    return float((student - teacher).var(axis=1).mean() / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [9.9, 10.1, 20.0, 1e2, 1e3])
def test_kd_is_exact_at_high_temperatures(
    dtype: torch.dtype, temperature: float, student: Tensor, teacher: Tensor
) -> None:
    found = losses.kd(student.to(dtype), teacher.to(dtype), temperature=temperature).item()
    assert found == pytest.approx(kd(temperature), rel=1e-4 if temperature < 10 and dtype == torch.float32 else 3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e6, 1e9, 1e18, 1e30, 1e100])
def test_kd_reaches_its_limit(dtype: torch.dtype, temperature: float, student: Tensor, teacher: Tensor) -> None:
    ours = student.detach().to(dtype).requires_grad_()
    found = losses.kd(ours, teacher.to(dtype), temperature=temperature)
    assert found.item() == pytest.approx(in_limit(STUDENT, TEACHER), rel=1e-5)
    found.backward()  # of half a variance: the centred gap over N C
    gaps = STUDENT - TEACHER
    expected = (gaps - gaps.mean(axis=1, keepdims=True)) / gaps.size
    assert ours.grad is not None
    np.testing.assert_allclose(ours.grad, expected, rtol=1e-4, atol=1e-7)


def test_kd_takes_large_gaps_at_high_temperatures() -> None:
    """Gaps of 60 T and of 0.3 T in one batch: the plain formula for the one, the series for the other."""
    temperature = 50.0
    ours, theirs = np.array([[3000.0, 0.0, 0.0], [15.0, 0.0, -9.0]]), np.zeros((2, 3))
    expected = temperature**2 * kl(softmax(theirs / temperature), softmax(ours / temperature)).mean()
    student = torch.tensor(ours, dtype=torch.float32, requires_grad=True)
    found = losses.kd(student, torch.tensor(theirs, dtype=torch.float32), temperature=temperature)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    slope = temperature * (softmax(ours / temperature) - softmax(theirs / temperature)) / 2
    assert student.grad is not None
    np.testing.assert_allclose(student.grad, slope, rtol=1e-4)


@pytest.mark.parametrize("temperature", [20.0, 1e3])
def test_binary_kd_is_exact_at_high_temperatures(temperature: float, student: Tensor, teacher: Tensor) -> None:
    ours, theirs = (np.stack([z, np.zeros_like(z)], axis=2).reshape(-1, 2) for z in (STUDENT, TEACHER))
    mean = temperature**2 * kl(softmax(theirs / temperature), softmax(ours / temperature)).mean()
    for classes, expected in (("mean", mean), ("sum", 4 * mean)):
        found = losses.binary_kd(student.float(), teacher.float(), temperature=temperature, classes=classes).item()
        assert found == pytest.approx(expected, rel=3e-6)
