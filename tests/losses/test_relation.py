"""Relation-based losses against formulas in float64 NumPy, and their properties."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import losses
from tests.losses.conftest import both, draw, length_one

N = 4
OURS, THEIRS, SAME = draw(0, N, 3), draw(1, N, 5), draw(2, N, 3)
ROTATION = np.linalg.qr(draw(3, 3, 3))[0]


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) <= 1 else abs(difference) - 0.5


def assert_same(loss: Callable[..., Tensor], *changed: np.ndarray, **settings: object) -> None:
    """Expect that the loss of changed student features is that of the unchanged ones."""
    expected = loss(*both(OURS, THEIRS), **settings).item()
    for rows in changed:
        assert loss(*both(rows, THEIRS), **settings).item() == pytest.approx(expected, rel=1e-8)


# --- RKD


def relative_distances(rows: np.ndarray) -> np.ndarray:
    lengths = np.array([[math.dist(a, b) for b in rows] for a in rows])
    return lengths / lengths[lengths > 0].mean()


def angles(rows: np.ndarray) -> np.ndarray:
    cosines = np.zeros((len(rows),) * 3)
    for i, j, k in np.ndindex(cosines.shape):
        a, b = rows[j] - rows[i], rows[k] - rows[i]
        scale = np.linalg.norm(a) * np.linalg.norm(b)
        cosines[i, j, k] = a @ b / scale if scale > 0 else 0.0
    return cosines


@pytest.mark.parametrize(("loss", "relation"), [(losses.rkd_distance, relative_distances), (losses.rkd_angle, angles)])
def test_rkd_equals_the_formula(loss: Callable[..., Tensor], relation: Callable[[np.ndarray], np.ndarray]) -> None:
    for ours in (OURS, 5 * OURS**3):  # the second reaches the linear part of the Huber loss
        differences = (relation(ours) - relation(THEIRS)).ravel()
        expected = sum(map(huber, differences)) / len(differences)
        assert loss(*both(ours, THEIRS)).item() == pytest.approx(expected, rel=1e-9)


def test_rkd_distance_by_hand() -> None:
    ours = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)  # distances 1, 2, 3, mean 2
    theirs = torch.tensor([[0.0], [2.0], [4.0]], dtype=torch.float64)  # distances 2, 2, 4, mean 8/3
    expected = 2 * (0.25**2 + 0.25**2 + 0.0**2) / 2 / 9
    assert losses.rkd_distance(ours, theirs).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", [losses.rkd_distance, losses.rkd_angle])
def test_rkd_ignores_where_how_large_and_how_turned(loss: Callable[..., Tensor]) -> None:
    assert_same(loss, OURS + 7, 0.01 * OURS, OURS @ ROTATION)
    assert loss(*both(OURS, 3 * OURS @ ROTATION - 1)).item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("loss", [losses.rkd_distance, losses.rkd_angle])
def test_rkd_of_equal_rows_is_zero_and_finite(loss: Callable[..., Tensor]) -> None:
    equal = torch.full((7, 3), 0.1).requires_grad_()
    value = loss(equal, torch.full((7, 2), 0.3))
    value.backward()
    assert value.item() == 0.0
    assert equal.grad is not None
    assert not equal.grad.any()
    assert loss(torch.ones(1, 3), torch.ones(1, 2)).item() == 0.0


def test_equal_rows_among_others_do_not_count_in_the_mean_distance() -> None:
    ours = np.concatenate([OURS, OURS[:1]])
    theirs = np.concatenate([THEIRS, THEIRS[:1]])
    differences = (relative_distances(ours) - relative_distances(theirs)).ravel()
    expected = sum(map(huber, differences)) / 25
    assert losses.rkd_distance(*both(ours, theirs)).item() == pytest.approx(expected, rel=1e-9)


# --- similarity preserving


def test_similarity_preserving_equals_the_formula() -> None:
    ours, theirs = draw(4, N, 2, 3, 3), draw(5, N, 4, 2, 2)
    rows = [length_one(x.reshape(N, -1) @ x.reshape(N, -1).T) for x in (ours, theirs)]
    expected = ((rows[0] - rows[1]) ** 2).sum() / N**2
    assert losses.similarity_preserving(*both(ours, theirs)).item() == pytest.approx(expected, rel=1e-9)


def test_similarity_preserving_invariances() -> None:
    loss = losses.similarity_preserving
    assert_same(loss, 3 * OURS, OURS @ ROTATION)
    expected = loss(*both(OURS, THEIRS)).item()
    for rows in (OURS * [[1], [5], [1], [1]], OURS + 1):  # single samples scaled; all moved
        assert loss(*both(rows, THEIRS)).item() != pytest.approx(expected, rel=1e-2)
    assert loss(*both(OURS, 2 * OURS)).item() == pytest.approx(0.0, abs=1e-15)


# --- correlation congruence


def test_correlation_congruence_kernel_equals_the_formula() -> None:
    def kernel(rows: np.ndarray, gamma: float, order: int) -> np.ndarray:
        cosines = length_one(rows) @ length_one(rows).T
        return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1))

    for settings in ({"gamma": 0.4, "order": 2}, {"gamma": 1.5, "order": 4}):
        expected = ((kernel(OURS, **settings) - kernel(THEIRS, **settings)) ** 2).sum() / N**2
        found = losses.correlation_congruence(*both(OURS, THEIRS), **settings)
        assert found.item() == pytest.approx(expected, rel=1e-9)
    assert losses.correlation_congruence(*both(OURS, THEIRS)).item() == pytest.approx(
        ((kernel(OURS, 0.4, 2) - kernel(THEIRS, 0.4, 2)) ** 2).mean(), rel=1e-9
    )


def test_correlation_congruence_kernel_tends_to_the_gaussian_one() -> None:
    def gaussian(rows: np.ndarray) -> np.ndarray:
        return np.array([[math.exp(-0.4 * math.dist(a, b) ** 2) for b in length_one(rows)] for a in length_one(rows)])

    expected = ((gaussian(OURS) - gaussian(THEIRS)) ** 2).mean()
    found = losses.correlation_congruence(*both(OURS, THEIRS), order=20).item()
    assert found == pytest.approx(expected, rel=1e-9)
    assert_same(losses.correlation_congruence, OURS @ ROTATION, OURS * [[1], [5], [2], [3]])


def test_correlation_congruence_delta_equals_the_formula_and_knows_an_order() -> None:
    delta = np.abs(OURS - SAME)
    expected = sum((delta[b] * delta[b + 1]).sum() for b in range(N - 1)) / (N - 1)
    found = losses.correlation_congruence(*both(OURS, SAME), variant="delta").item()
    assert found == pytest.approx(expected, rel=1e-9)
    order = [2, 0, 3, 1]
    assert losses.correlation_congruence(*both(OURS[order], SAME[order]), variant="delta").item() != pytest.approx(
        found
    )
    assert losses.correlation_congruence(*both(OURS, OURS), variant="delta").item() == 0.0


# --- PKT


def test_pkt_equals_the_formula() -> None:
    def probabilities(rows: np.ndarray) -> np.ndarray:
        scaled = rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-7)
        similarities = (scaled @ scaled.T + 1) / 2
        return similarities / similarities.sum(axis=1, keepdims=True)

    p, q = probabilities(THEIRS), probabilities(OURS)
    expected = sum(p[i, j] * math.log((p[i, j] + 1e-7) / (q[i, j] + 1e-7)) for i, j in np.ndindex(N, N)) / N**2
    assert losses.pkt(*both(OURS, THEIRS)).item() == pytest.approx(expected, rel=1e-9)


def test_pkt_invariances_and_minimum() -> None:
    expected = losses.pkt(*both(OURS, THEIRS)).item()
    for rows in (OURS @ ROTATION, OURS * [[1], [5], [2], [3]]):
        assert losses.pkt(*both(rows, THEIRS)).item() == pytest.approx(expected, rel=1e-5)  # eps of the norms
    assert expected > 0
    assert losses.pkt(*both(OURS, OURS)).item() == 0.0


# --- triplet


def test_triplet_equals_the_formula() -> None:
    negative = draw(6, N, 3)
    for normalise in (True, False):
        a, p, n = (length_one(x) if normalise else x for x in (OURS, SAME, negative))
        terms = [max(0.0, ((a[i] - p[i]) ** 2).sum() - ((a[i] - n[i]) ** 2).sum() + 0.2) for i in range(N)]
        found = losses.triplet(*both(OURS, SAME), torch.tensor(negative), normalise=normalise)
        assert found.item() == pytest.approx(sum(terms) / N, rel=1e-9)
        assert sum(terms) > 0


def test_triplet_is_zero_when_the_margin_is_met_and_the_margin_when_both_coincide() -> None:
    ours, theirs = both(OURS, SAME)
    assert losses.triplet(ours, ours, -ours).item() == 0.0
    assert losses.triplet(ours, theirs, theirs, margin=0.3).item() == pytest.approx(0.3, rel=1e-12)


def test_hardest_negatives_are_the_nearest_of_another_class() -> None:
    labels = np.array([0, 1, 0, 2])
    ours, theirs = both(OURS, SAME)
    found = losses.hardest_negatives(ours, theirs, torch.tensor(labels))
    for i in range(N):
        others = [j for j in range(N) if labels[j] != labels[i]]
        cosines = [length_one(OURS)[i] @ length_one(SAME)[j] for j in others]
        assert torch.equal(found[i], theirs[others[int(np.argmax(cosines))]])


def test_hardest_negatives_of_one_class_leave_the_margin() -> None:
    ours, theirs = both(OURS, SAME)
    ours.requires_grad_()
    negatives = losses.hardest_negatives(ours, theirs, torch.zeros(N, dtype=torch.int64))
    assert torch.equal(negatives, theirs)
    loss = losses.triplet(ours, theirs, negatives)
    assert loss.item() == pytest.approx(0.2, rel=1e-12)
    assert torch.autograd.grad(loss, ours)[0].abs().max() < 1e-15


# --- refusals


def test_refuses_what_does_not_fit() -> None:
    ours, theirs = both(OURS, THEIRS)
    with pytest.raises(ValueError, match=r"teacher: expected shape \(4, e\), found \(3, 5\)"):
        losses.rkd_distance(ours, theirs[:3])
    with pytest.raises(ValueError, match=r"student: expected shape \(N, d\), found \(4,\)"):
        losses.pkt(ours[:, 0], theirs)
    with pytest.raises(ValueError, match=r"teacher: expected shape \(4, 3\), found \(4, 5\)"):
        losses.correlation_congruence(ours, theirs, variant="delta")
    with pytest.raises(ValueError, match="variant: expected one of 'kernel', 'delta', found 'paper'"):
        losses.correlation_congruence(ours, theirs, variant="paper")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"order: expected an integer of 1 or more, found 1\.5"):
        losses.correlation_congruence(ours, ours, order=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"negative: expected shape \(4, 3\), found \(4, 5\)"):
        losses.triplet(ours, ours, theirs)
    with pytest.raises(ValueError, match="margin: expected a finite number above 0, found -1"):
        losses.triplet(ours, ours, ours, margin=-1)
    with pytest.raises(ValueError, match=r"labels: expected shape \(4,\), found \(3,\)"):
        losses.hardest_negatives(ours, ours, torch.zeros(3))
