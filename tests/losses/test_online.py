"""Losses of networks that teach each other: formulas in float64 NumPy, and what is particular to each."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import losses
from tests.losses.conftest import STUDENT, TEACHER, kl, softmax

PEERS = np.stack([TEACHER, TEACHER[::-1], -TEACHER])


@pytest.fixture
def own() -> Tensor:
    return torch.tensor(STUDENT, requires_grad=True)


@pytest.fixture
def peers() -> Tensor:
    return torch.tensor(PEERS)


def test_mutual_equals_the_formula(own: Tensor, peers: Tensor) -> None:
    each = [kl(softmax(peer), softmax(STUDENT)).mean() for peer in PEERS]
    assert losses.mutual(own, peers).item() == pytest.approx(np.mean(each), rel=1e-9)
    assert losses.mutual(own, peers, peers="sum").item() == pytest.approx(np.sum(each), rel=1e-9)


def test_mutual_with_one_peer_is_kd(own: Tensor, peers: Tensor) -> None:
    expected = losses.kd(own, peers[0]).item()
    for name in ("mean", "sum"):
        assert losses.mutual(own, peers[:1], peers=name).item() == pytest.approx(expected, rel=1e-12)


def test_identical_peers_teach_nothing(own: Tensor) -> None:
    same = torch.stack([own, own])
    assert losses.mutual(own, same).item() == 0.0
    assert losses.ensemble_mutual(own, same).item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("name", ["mean", "sum"])
def test_a_network_alone_has_nothing_to_learn(name: str, own: Tensor, peers: Tensor) -> None:
    loss = losses.mutual(own, peers[:0], peers=name)
    (gradient,) = torch.autograd.grad(loss, own)
    assert loss.item() == 0.0
    assert (gradient == 0).all()
    with pytest.raises(ValueError, match=r"peers_logits: expected shape \(K, 4, 4\), nowhere 0, found \(0, 4, 4\)"):
        losses.ensemble_mutual(own, peers[:0])


def test_each_network_learns_from_its_own_loss_only(own: Tensor, peers: Tensor) -> None:
    other = peers[0].clone().requires_grad_()
    first, second = losses.mutual(own, other[None]), losses.mutual(other, own[None])
    assert torch.autograd.grad(first, [own, other], retain_graph=True, allow_unused=True)[1] is None
    assert torch.autograd.grad(second, [own, other], retain_graph=True, allow_unused=True)[0] is None
    swapped = losses.mutual(other, own[None]), losses.mutual(own, other[None])
    assert (first.item(), second.item()) == (swapped[1].item(), swapped[0].item())


@pytest.mark.parametrize("loss", [losses.mutual, losses.ensemble_mutual])
def test_the_order_of_peers_is_irrelevant(loss: object, own: Tensor, peers: Tensor) -> None:
    assert callable(loss)
    assert loss(own, peers.flip(0)).item() == pytest.approx(loss(own, peers).item(), rel=1e-12)


def test_ensemble_mutual_equals_the_formula(own: Tensor, peers: Tensor) -> None:
    expected = kl(softmax(PEERS).mean(axis=0), softmax(STUDENT)).mean()
    assert losses.ensemble_mutual(own, peers).item() == pytest.approx(expected, rel=1e-9)


def test_the_ensemble_pulls_as_its_members_do_on_average(own: Tensor, peers: Tensor) -> None:
    together, apart = losses.ensemble_mutual(own, peers), losses.mutual(own, peers)
    assert together.item() < apart.item()
    (one,), (other,) = torch.autograd.grad(together, own), torch.autograd.grad(apart, own)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_consistency_equals_the_formulas(own: Tensor) -> None:
    teacher = torch.tensor(TEACHER)
    squared = ((softmax(STUDENT) - softmax(TEACHER)) ** 2).sum() / 4 / 4
    assert losses.consistency(own, teacher).item() == pytest.approx(squared, rel=1e-9)
    divergence = kl(softmax(TEACHER), softmax(STUDENT)).mean()
    assert losses.consistency(own, teacher, cost="kl").item() == pytest.approx(divergence, rel=1e-9)
    assert losses.consistency(teacher, teacher).item() == losses.consistency(teacher, teacher, cost="kl").item() == 0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_class_wise_self_equals_the_formula(temperature: float, own: Tensor) -> None:
    partner = torch.tensor(TEACHER)
    expected = temperature**2 * kl(softmax(TEACHER / temperature), softmax(STUDENT / temperature)).mean()
    assert losses.class_wise_self(own, partner, temperature=temperature).item() == pytest.approx(expected, rel=1e-9)
    assert losses.class_wise_self(own, own).item() == 0.0


def test_ema_update_equals_the_formula() -> None:
    average, current = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, -2.0])}
    for step, keep in ((1, 0.5), (3, 0.75), (10_000, 0.999)):
        found = losses.ema_update(average, current, step=step)["w"]
        torch.testing.assert_close(found, keep * average["w"] + (1 - keep) * current["w"])
    assert losses.ema_update(average, current, step=9, decay=0.2)["w"].tolist() == pytest.approx([2.6, -1.2])


def test_the_first_ema_update_copies_the_student() -> None:
    average, current = {"w": torch.tensor([math.nan])}, {"w": torch.tensor([3.0], requires_grad=True)}
    found = losses.ema_update(average, current, step=0)
    assert found["w"].item() == 3.0
    assert not found["w"].requires_grad
    assert found["w"].data_ptr() != current["w"].data_ptr()


def test_ema_update_stays_where_both_are_equal_and_copies_counts() -> None:
    same = {"w": torch.tensor([0.1, -7.0], dtype=torch.float64), "steps": torch.tensor(4)}
    found = losses.ema_update({**same, "steps": torch.tensor(3)}, same, step=5)
    torch.testing.assert_close(found["w"], same["w"], rtol=1e-15, atol=0)
    assert found["steps"].item() == 4


def test_ema_update_refuses_what_does_not_fit() -> None:
    average, current = {"w": torch.zeros(2)}, {"w": torch.zeros(2)}
    with pytest.raises(ValueError, match="current: expected the names of average, found only on one side: b, w"):
        losses.ema_update(average, {"b": torch.zeros(2)}, step=0)
    with pytest.raises(ValueError, match=r"current\['w'\]: expected shape \(2,\), found \(3,\)"):
        losses.ema_update(average, {"w": torch.zeros(3)}, step=0)
    with pytest.raises(ValueError, match="step: expected a finite number, 0 or above"):
        losses.ema_update(average, current, step=-1)
    with pytest.raises(ValueError, match=r"decay: expected a number from 0 to 1, found 1\.1"):
        losses.ema_update(average, current, step=1, decay=1.1)


def test_ramp_up_rises_from_almost_nothing_to_one() -> None:
    weights = [losses.ramp_up(time, length=30) for time in range(40)]
    assert weights[0] == pytest.approx(math.exp(-5))
    assert weights[15] == pytest.approx(math.exp(-5 / 4))
    assert weights[30:] == [1.0] * 10
    assert weights[:31] == sorted(set(weights))
    assert losses.ramp_up(0, length=0) == 1.0


def test_settings_out_of_range_are_refused(own: Tensor, peers: Tensor) -> None:
    with pytest.raises(ValueError, match="peers: expected one of 'mean', 'sum', found 'max'"):
        losses.mutual(own, peers, peers="max")
    with pytest.raises(ValueError, match="cost: expected one of 'mse', 'kl', found 'l1'"):
        losses.consistency(own, peers[0], cost="l1")
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0"):
        losses.class_wise_self(own, peers[0], temperature=0.0)
    with pytest.raises(ValueError, match="time: expected a finite number, 0 or above"):
        losses.ramp_up(-1, length=30)
    with pytest.raises(ValueError, match="length: expected a finite number, 0 or above"):
        losses.ramp_up(1, length=math.nan)
    with pytest.raises(ValueError, match=r"peers_logits: expected shape \(.*4, 4\), found \(4, 4\)"):
        losses.mutual(own, peers[0])
