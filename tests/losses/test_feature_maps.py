"""Losses on summaries of feature maps, against formulas in float64 NumPy, and their properties."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import losses
from tests.losses.conftest import both, draw, length_one

OURS, THEIRS = draw(0, 4, 3, 2, 2), draw(1, 4, 5, 2, 2)
SAME = draw(2, 4, 3, 2, 2)


def halved(maps: np.ndarray) -> np.ndarray:
    """Average every block of two by two."""
    samples, channels, height, width = maps.shape
    return maps.reshape(samples, channels, height // 2, 2, width // 2, 2).mean(axis=(3, 5))


def attention_maps(maps: np.ndarray, power: float = 2) -> np.ndarray:
    return length_one((np.abs(maps) ** power).mean(axis=1).reshape(len(maps), -1))


# --- attention


@pytest.mark.parametrize("power", [1, 2, 3.5])
def test_attention_equals_the_formulas(power: float) -> None:
    difference = attention_maps(OURS, power) - attention_maps(THEIRS, power)
    code = losses.attention(*both(OURS, THEIRS), power=power)
    paper = losses.attention(*both(OURS, THEIRS), variant="paper", power=power)
    assert code.item() == pytest.approx((difference**2).sum() / (4 * 4), rel=1e-9)
    assert paper.item() == pytest.approx(np.sqrt((difference**2).sum(axis=1)).mean(), rel=1e-9)


def test_attention_by_hand() -> None:
    ours = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    theirs = ours.clone()
    ours[0, :, 0, 0], theirs[0, 1, 0, 1] = 3.0, -5.0  # all attention on the left, and on the right
    assert losses.attention(ours, theirs).item() == 1.0  # ((1, 0) - (0, 1))^2, mean: the largest value, 2 / (H W)
    assert losses.attention(ours, theirs, variant="paper").item() == pytest.approx(2**0.5, rel=1e-12)


@pytest.mark.parametrize("loss", [losses.attention, losses.factor_transfer, losses.nst], ids=lambda loss: loss.__name__)
def test_the_larger_map_is_averaged_down(loss: Callable[..., Tensor]) -> None:
    large = draw(3, 4, 3, 4, 4)
    expected = loss(*both(halved(large), SAME)).item()
    assert loss(*both(large, SAME)).item() == pytest.approx(expected, rel=1e-12)
    expected = loss(*both(SAME, halved(large))).item()
    assert loss(*both(SAME, large)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_attention_ignores_scale_and_mixing_of_channels(variant: str) -> None:
    ours, theirs = both(OURS, THEIRS)
    mixing = torch.linalg.qr(torch.tensor(draw(5, 3, 3)))[0]
    expected = losses.attention(ours, theirs, variant=variant).item()
    for changed in (2.5 * ours, -ours, ours[:, [2, 0, 1]], torch.einsum("cd,ndhw->nchw", mixing, ours)):
        assert losses.attention(changed, theirs, variant=variant).item() == pytest.approx(expected, rel=1e-9)
    assert losses.attention(ours, ours, variant=variant).item() == 0.0


def test_attention_at_equality_has_a_finite_gradient() -> None:
    ours = torch.tensor(OURS, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.attention(ours, ours.detach(), variant="paper"), ours)
    assert not gradient.any()


# --- factor transfer


def test_factor_transfer_equals_the_formulas() -> None:
    difference = length_one(OURS.reshape(4, -1)) - length_one(SAME.reshape(4, -1))
    pair = both(OURS, SAME)
    for settings, expected in (
        ({}, np.abs(difference).sum() / difference.size),
        ({"norm": 2}, (difference**2).sum() / difference.size),
        ({"variant": "paper"}, np.abs(difference).sum() / 4),
        ({"variant": "paper", "norm": 2}, np.sqrt((difference**2).sum(axis=1)).mean()),
    ):
        assert losses.factor_transfer(*pair, **settings).item() == pytest.approx(expected, rel=1e-9)
    difference = attention_maps(OURS) - attention_maps(THEIRS)
    found = losses.factor_transfer(*both(OURS, THEIRS), variant="attention")
    assert found.item() == pytest.approx(np.abs(difference).mean(), rel=1e-9)


def test_factor_transfer_ignores_scale_and_is_zero_at_equality() -> None:
    ours, theirs = both(OURS, SAME)
    for settings in ({}, {"norm": 2}, {"variant": "paper", "norm": 2}, {"variant": "attention"}):
        expected = losses.factor_transfer(ours, theirs, **settings).item()
        assert losses.factor_transfer(3 * ours, 0.5 * theirs, **settings).item() == pytest.approx(expected, rel=1e-9)
        assert losses.factor_transfer(2 * ours, ours, **settings).item() == pytest.approx(0.0, abs=1e-15)


# --- FSP


def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    samples, channels, height, width = first.shape
    matrix = np.zeros((samples, channels, second.shape[1]))
    for h, w in np.ndindex(height, width):
        matrix += first[:, :, None, h, w] * second[:, None, :, h, w] / (height * width)
    return matrix


def test_fsp_equals_the_formulas() -> None:
    first, second = draw(3, 4, 3, 4, 4), draw(4, 4, 5, 2, 2)
    difference = flow(halved(first), second) - flow(SAME, THEIRS)
    arguments = both(first, second), both(SAME, THEIRS)
    assert losses.fsp(*arguments).item() == pytest.approx((difference**2).sum() / (4 * 3 * 5), rel=1e-9)
    assert losses.fsp(*arguments, variant="paper").item() == pytest.approx((difference**2).sum() / 4, rel=1e-9)


def test_fsp_by_hand_and_its_invariances() -> None:
    ours = torch.ones(1, 1, 2, 2).double(), 2 * torch.ones(1, 1, 2, 2).double()
    theirs = torch.zeros(1, 1, 2, 2).double(), torch.ones(1, 1, 2, 2).double()
    assert losses.fsp(ours, theirs).item() == 4.0
    first, second = both(OURS, THEIRS)
    other = both(SAME, THEIRS)
    expected = losses.fsp((first, second), other).item()
    assert losses.fsp((2 * first, second / 2), other).item() == pytest.approx(expected, rel=1e-9)
    assert losses.fsp((first.flip(3), second.flip(3)), other).item() == pytest.approx(expected, rel=1e-9)
    assert losses.fsp((first, second), (first, second)).item() == 0.0


# --- NST


def test_nst_equals_the_formula() -> None:
    total = 0.0
    for ours, theirs in zip(OURS, THEIRS, strict=True):
        x, y = length_one(ours.reshape(3, -1)), length_one(theirs.reshape(5, -1))
        total += sum((x[i] @ x[j]) ** 2 for i in range(3) for j in range(3)) / 9
        total += sum((y[i] @ y[j]) ** 2 for i in range(5) for j in range(5)) / 25
        total -= 2 * sum((x[i] @ y[j]) ** 2 for i in range(3) for j in range(5)) / 15
    assert losses.nst(*both(OURS, THEIRS)).item() == pytest.approx(total / 4, rel=1e-9)


def test_nst_ignores_order_scale_and_sign_of_channels() -> None:
    ours, theirs = both(OURS, THEIRS)
    expected = losses.nst(ours, theirs).item()
    factors = torch.tensor([-1.0, 3.0, 0.1], dtype=torch.float64).reshape(1, 3, 1, 1)
    for changed in (ours[:, [1, 2, 0]], factors * ours, torch.cat([ours, ours], dim=1)):
        assert losses.nst(changed, theirs).item() == pytest.approx(expected, rel=1e-9)
    assert losses.nst(ours, ours).item() == pytest.approx(0.0, abs=1e-15)
    assert expected > 0


# --- refusals


def test_refuses_what_does_not_fit() -> None:
    maps, wide = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4)
    with pytest.raises(ValueError, match=r"student: expected shape \(N, C, H, W\), found \(2, 3\)"):
        losses.attention(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"teacher: expected shape \(2, D, H', W'\), found \(3, 3, 4, 4\)"):
        losses.nst(maps, torch.zeros(3, 3, 4, 4))
    with pytest.raises(ValueError, match=r"teacher: expected shape \(2, 3, 4, 4\), found \(2, 5, 4, 4\)"):
        losses.factor_transfer(maps, wide)
    with pytest.raises(ValueError, match=r"teacher\[1\]: expected shape \(2, 3, H', W'\), found \(2, 5, 4, 4\)"):
        losses.fsp((maps, maps), (maps, wide))
    with pytest.raises(ValueError, match=r"student: expected a pair of maps \(first, second\), found Tensor"):
        losses.fsp(maps, (maps, maps))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="variant: expected one of 'code', 'paper', found 'both'"):
        losses.attention(maps, maps, variant="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm: expected one of '1', '2', found '3'"):
        losses.factor_transfer(maps, maps, norm=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="power: expected a finite number above 0, found 0"):
        losses.attention(maps, maps, power=0)
