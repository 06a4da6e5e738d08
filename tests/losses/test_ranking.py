"""Losses on rankings and regressed values: formulas in float64 NumPy, and what is particular to each."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import losses
from tests.losses.conftest import STUDENT, TEACHER, Array, softmax

RANKED = np.argsort(-TEACHER, axis=1)
SHIFT = np.array([[5.0], [-3.0], [0.5], [20.0]])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_listnet_equals_the_formula(temperature: float, student: Tensor, teacher: Tensor) -> None:
    p, q = softmax(STUDENT / temperature), softmax(TEACHER / temperature)
    found = losses.listnet(student, teacher, temperature=temperature).item()
    assert found == pytest.approx(-(q * np.log(p)).sum() / 4, rel=1e-9)
    least = losses.listnet(teacher, teacher, temperature=temperature).item()
    assert least == pytest.approx(-(q * np.log(q)).sum() / 4, rel=1e-9)
    assert found > least


def plackett_luce(scores: Array, order: tuple[int, ...]) -> float:
    """Return the probability that items are drawn in this order."""
    powers = np.exp(scores)
    return float(np.prod([powers[item] / powers[list(order[place:])].sum() for place, item in enumerate(order)]))


def test_listmle_equals_the_formula(student: Tensor, teacher: Tensor) -> None:
    chances = [plackett_luce(scores, tuple(order)) for scores, order in zip(STUDENT, RANKED, strict=True)]
    assert losses.listmle(student, teacher).item() == pytest.approx(-np.log(chances).mean(), rel=1e-9)


def test_listmle_is_a_distribution_over_orders(student: Tensor) -> None:
    orders = list(permutations(range(4)))
    teachers = torch.tensor([[-float(order.index(item)) for item in range(4)] for order in orders])
    total = sum(math.exp(-losses.listmle(student[:1], teacher[None]).item()) for teacher in teachers)
    assert total == pytest.approx(1.0, rel=1e-9)


def test_listmle_looks_at_the_order_only(student: Tensor, teacher: Tensor) -> None:
    expected = losses.listmle(student, teacher).item()
    assert losses.listmle(student, teacher**3 + 7).item() == expected
    assert losses.listmle(100 * teacher, teacher).item() == pytest.approx(0.0, abs=1e-6)
    scores, first_to_last = torch.linspace(-1, 1, 500).sin()[None], -torch.arange(500.0)[None]
    ties = torch.zeros_like(scores)
    assert losses.listmle(scores, ties).item() == losses.listmle(scores, first_to_last).item()


def test_margin_mse_equals_the_formula(student: Tensor, teacher: Tensor) -> None:
    margins = [scores[:, :1] - scores[:, 1:] for scores in (STUDENT, TEACHER)]
    expected = ((margins[0] - margins[1]) ** 2).sum() / 12
    assert losses.margin_mse(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    pair = losses.margin_mse(student[:, :2], teacher[:, :2]).item()
    assert pair == pytest.approx(((margins[0] - margins[1])[:, 0] ** 2).mean(), rel=1e-9)
    assert losses.margin_mse(teacher, teacher).item() == 0.0
    with pytest.raises(ValueError, match="student: expected at least 2 classes, found 1"):
        losses.margin_mse(student[:, :1], teacher[:, :1])


@pytest.mark.parametrize("loss", [losses.listnet, losses.listmle, losses.margin_mse])
def test_a_shift_of_a_query_is_irrelevant(loss: object, student: Tensor, teacher: Tensor) -> None:
    assert callable(loss)
    shift, expected = torch.tensor(SHIFT), loss(student, teacher).item()
    assert loss(student + shift, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert loss(student, teacher + shift).item() == pytest.approx(expected, rel=1e-9)


def ranking_distillation(k: int, sharpness: float, mu: float | None, renormalised: bool) -> float:
    weights = np.exp(-np.arange(1, k + 1) / sharpness)
    weights = np.tile(weights / weights.sum(), (4, 1))
    if mu is not None:
        ranks = np.argsort(np.argsort(-STUDENT, axis=1), axis=1)
        gaps = np.take_along_axis(ranks, RANKED[:, :k], axis=1) - np.arange(k)
        weights = weights * np.tanh(np.maximum(mu * gaps, 0))
        if renormalised:
            weights = weights / np.where(weights.sum(axis=1) > 0, weights.sum(axis=1), 1)[:, None]
    chosen = np.take_along_axis(STUDENT, RANKED[:, :k], axis=1)
    return float((weights * np.log(1 + np.exp(-chosen))).sum() / 4)


@pytest.mark.parametrize(("k", "sharpness"), [(1, 1.0), (3, 1.0), (4, 10.0)])
@pytest.mark.parametrize("mu", [None, 0.1, 1.0])
def test_ranking_distillation_equals_the_formula(
    k: int, sharpness: float, mu: float | None, student: Tensor, teacher: Tensor
) -> None:
    for variant in ("paper", "code"):
        found = losses.ranking_distillation(
            student, teacher, k=k, temperature=sharpness, discrepancy=mu, variant=variant
        ).item()
        assert found == pytest.approx(ranking_distillation(k, sharpness, mu, variant == "paper"), rel=1e-9)


def test_ranking_distillation_by_hand() -> None:
    student, teacher = torch.zeros(1, 3), torch.tensor([[0.1, 0.9, 0.5]])
    for temperature in (0.5, 5.0):  # all scores are alike, and the weights sum to 1
        loss = losses.ranking_distillation(student, teacher, k=2, temperature=temperature)
        assert loss.item() == pytest.approx(math.log(2), rel=1e-6)


def test_an_item_ranked_high_enough_has_no_weight(teacher: Tensor) -> None:
    loss = losses.ranking_distillation(teacher.requires_grad_(), teacher, k=3, discrepancy=1.0)
    (gradient,) = torch.autograd.grad(loss, teacher)
    assert loss.item() == 0.0
    assert (gradient == 0).all()


@pytest.mark.parametrize("margin", [0.0, 3.0])
def test_teacher_bounded_regression_equals_the_formula(margin: float, student: Tensor, teacher: Tensor) -> None:
    targets = TEACHER[::-1].copy()
    error, bound = (((values - targets) ** 2).sum(axis=1) for values in (STUDENT, TEACHER))
    counted = error + margin > bound
    assert counted.any()
    expected = np.where(counted, error, 0).mean()
    found = losses.teacher_bounded_regression(student, teacher, torch.tensor(targets), margin=margin).item()
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_student_better_than_the_teacher_is_left_alone() -> None:
    student = torch.tensor([[1.0, 0.0], [3.0, 0.0]], requires_grad=True)
    teacher, targets = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.zeros(2, 2)
    loss = losses.teacher_bounded_regression(student, teacher, targets)
    assert loss.item() == 4.5  # only the second, with 9
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.tolist() == [[0.0, 0.0], [3.0, 0.0]]
    assert losses.teacher_bounded_regression(student, teacher, targets, margin=3.5).item() == 5.0  # 1 + 3.5 > 4


def test_settings_out_of_range_are_refused(student: Tensor, teacher: Tensor) -> None:
    with pytest.raises(ValueError, match="k: expected an integer from 1 to 4, found 10"):
        losses.ranking_distillation(student, teacher)
    with pytest.raises(ValueError, match=r"k: expected an integer from 1 to 4, found 2\.5"):
        losses.ranking_distillation(student, teacher, k=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0"):
        losses.ranking_distillation(student, teacher, k=2, temperature=0.0)
    with pytest.raises(ValueError, match="discrepancy: expected a finite number above 0"):
        losses.ranking_distillation(student, teacher, k=2, discrepancy=0.0)
    with pytest.raises(ValueError, match="variant: expected one of 'paper', 'code'"):
        losses.ranking_distillation(student, teacher, k=2, variant="hybrid")
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0"):
        losses.listnet(student, teacher, temperature=-1.0)
    with pytest.raises(ValueError, match="margin: expected a finite number, 0 or above"):
        losses.teacher_bounded_regression(student, teacher, teacher, margin=-1.0)
