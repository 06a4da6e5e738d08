"""Losses up to shift and scale: formulas in float64 NumPy, and what is particular to each."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import losses
from tests.losses.conftest import STUDENT, TEACHER, Array, kl, softmax


def correlations(first: Array, second: Array) -> float:
    """Return the mean of Pearson's correlations of rows."""
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)]))


@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(1.0, 1.0, 1.0), (2.0, 0.5, 1.0), (1.0, 2.0, 4.0)])
def test_dist_equals_the_formula(
    beta: float, gamma: float, temperature: float, student: Tensor, teacher: Tensor
) -> None:
    found = losses.dist(student, teacher, beta=beta, gamma=gamma, temperature=temperature, eps=1e-15).item()
    p, q = softmax(STUDENT / temperature), softmax(TEACHER / temperature)
    expected = temperature**2 * (beta * (1 - correlations(p, q)) + gamma * (1 - correlations(p.T, q.T)))
    assert found == pytest.approx(expected, rel=1e-9)
    default = losses.dist(student, teacher, beta=beta, gamma=gamma, temperature=temperature).item()
    assert default == pytest.approx(expected, rel=1e-5)  # eps


def test_eps_of_dist_is_added_to_the_product_of_lengths(student: Tensor, teacher: Tensor) -> None:
    p, q = softmax(STUDENT), softmax(TEACHER)
    p, q = p - p.mean(axis=1, keepdims=True), q - q.mean(axis=1, keepdims=True)
    cosines = (p * q).sum(axis=1) / (np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1) + 0.1)
    found = losses.dist(student, teacher, gamma=0.0, eps=0.1).item()
    assert found == pytest.approx(1 - cosines.mean(), rel=1e-9)


def test_dist_lies_in_its_range(student: Tensor, teacher: Tensor) -> None:
    assert losses.dist(teacher, teacher).item() == pytest.approx(0.0, abs=1e-6)
    one, other = torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([[0.0, 9.0], [9.0, 0.0]])
    assert losses.dist(one, other, beta=2.0, gamma=3.0).item() == pytest.approx(10.0, rel=1e-5)  # 2 * (beta + gamma)


def test_dist_ignores_a_shift_of_the_logits(student: Tensor, teacher: Tensor) -> None:
    shift = torch.tensor([[5.0], [-3.0], [0.5], [10.0]], dtype=torch.float64)
    expected = losses.dist(student, teacher).item()
    assert losses.dist(student + shift, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_what_does_not_vary_correlates_with_nothing(teacher: Tensor) -> None:
    even = torch.zeros(4, 4, dtype=torch.float64)
    assert losses.dist(even, teacher).item() == 2.0
    one = losses.dist(teacher[:1], teacher[:1]).item()  # the columns of a batch of one do not vary
    assert one == pytest.approx(1.0, abs=1e-6)


def standardised(logits: Array, spare: int, eps: float) -> Array:
    centred = logits - logits.mean(axis=1, keepdims=True)
    rows: Array = centred / (logits.std(axis=1, keepdims=True, ddof=spare) + eps)
    return rows


@pytest.mark.parametrize(("variant", "spare", "eps"), [("paper", 0, 0.0), ("code", 1, 1e-7)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_logit_standardized_kd_equals_the_formula(
    variant: str, spare: int, eps: float, temperature: float, student: Tensor, teacher: Tensor
) -> None:
    found = losses.logit_standardized_kd(student, teacher, temperature=temperature, variant=variant).item()
    p, q = (softmax(standardised(logits, spare, eps) / temperature) for logits in (STUDENT, TEACHER))
    assert found == pytest.approx(temperature**2 * kl(q, p).mean(), rel=1e-9)


def test_logit_standardized_kd_ignores_shift_and_scale(student: Tensor, teacher: Tensor) -> None:
    scale = torch.tensor([[5.0], [0.01], [2.0], [100.0]], dtype=torch.float64)
    expected = losses.logit_standardized_kd(student, teacher).item()
    moved = scale * student + scale.flip(0)
    assert losses.logit_standardized_kd(moved, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert losses.logit_standardized_kd(student, scale * teacher - 3).item() == pytest.approx(expected, rel=1e-9)
    assert losses.logit_standardized_kd(-student, teacher).item() != pytest.approx(expected, rel=0.1)
    assert losses.logit_standardized_kd(scale * teacher, teacher).item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_row_is_zeros_even_if_its_mean_is_rounded(dtype: torch.dtype) -> None:
    constant = torch.full((1, 7), 0.1, dtype=dtype, requires_grad=True)
    teacher = torch.arange(7, dtype=dtype)[None]
    loss = losses.logit_standardized_kd(constant, teacher)
    expected = losses.kd(torch.zeros_like(constant), (teacher - 3) / 2, temperature=2.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, constant)
    assert (gradient == 0).all()


def test_settings_out_of_range_are_refused(student: Tensor, teacher: Tensor) -> None:
    with pytest.raises(ValueError, match="variant: expected one of 'paper', 'code', found 'z'"):
        losses.logit_standardized_kd(student, teacher, variant="z")
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0"):
        losses.logit_standardized_kd(student, teacher, temperature=0.0)
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0"):
        losses.dist(student, teacher, temperature=-1.0)
    with pytest.raises(ValueError, match="eps: expected a finite number above 0"):
        losses.dist(student, teacher, eps=0.0)
