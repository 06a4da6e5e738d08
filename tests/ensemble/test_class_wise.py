"""Class-wise knowledge, against formulas in float64 NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import ensemble

MEANS = np.random.default_rng(2).normal(size=(3, 4, 2))  # three clients, four classes, two entries
# Class 0 is held by all, class 1 by the last client alone, class 2 by nobody, class 3 by the first two.
COUNTS = np.array([[2, 0, 0, 1], [3, 0, 0, 4], [5, 7, 0, 0]])


def means_with_rubbish() -> Tensor:
    """The clients' means, with NaN where a client does not hold the class."""
    return torch.tensor(np.where(COUNTS[:, :, None] > 0, MEANS, np.nan))


def test_weighted_class_means() -> None:
    found, totals = ensemble.weighted_class_means(means_with_rubbish(), torch.tensor(COUNTS))
    expected = np.zeros((4, 2))
    for label in (0, 1, 3):
        expected[label] = (COUNTS[:, label, None] * MEANS[:, label]).sum(axis=0) / COUNTS[:, label].sum()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert totals.tolist() == [10, 7, 0, 5]


def test_leave_one_out_leaves_nobody_out() -> None:
    found, present = ensemble.leave_one_out(means_with_rubbish(), torch.tensor(COUNTS > 0), None)
    expected = np.stack([MEANS[:, 0].mean(axis=0), MEANS[2, 1], np.zeros(2), MEANS[:2, 3].mean(axis=0)])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert present.tolist() == [True, True, False, True]


def test_leave_one_out_is_the_formula_of_the_paper() -> None:
    everyone, _ = ensemble.leave_one_out(means_with_rubbish(), torch.tensor(COUNTS > 0), None)
    found, present = ensemble.leave_one_out(means_with_rubbish(), torch.tensor(COUNTS > 0), 0)
    np.testing.assert_allclose(found[0], (3 * everyone[0].numpy() - MEANS[0, 0]) / 2, rtol=1e-12)
    np.testing.assert_allclose(found[1], everyone[1].numpy(), rtol=1e-12)  # not its class: nothing to leave out
    np.testing.assert_allclose(found[3], MEANS[1, 3], rtol=1e-12)
    assert present.tolist() == [True, True, False, True]


def test_leave_one_out_of_a_class_nobody_else_has() -> None:
    found, present = ensemble.leave_one_out(means_with_rubbish(), torch.tensor(COUNTS > 0), 2)
    assert present.tolist() == [True, False, False, True]
    assert found[1].tolist() == [0.0, 0.0]


def test_class_means_keep_their_type_and_inputs() -> None:
    means, counts = torch.tensor(MEANS, dtype=torch.float32), torch.tensor(COUNTS)
    before = means.clone(), counts.clone()
    assert ensemble.weighted_class_means(means, counts)[0].dtype == torch.float32
    ensemble.leave_one_out(means, counts > 0, 1)
    assert torch.equal(means, before[0])
    assert torch.equal(counts, before[1])


def test_a_thousand_permutations_do_not_change_a_bit() -> None:
    source = np.random.default_rng(5)
    counts = torch.tensor(source.integers(0, 4, size=(12, 3)))  # about a quarter of the classes absent
    sizes = 10.0 ** source.integers(-8, 8, size=(12, 1, 1))  # so that most sums depend on their order
    means = torch.tensor(np.where(counts[:, :, None] > 0, sizes * source.normal(size=(12, 3, 2)), np.nan))
    first, totals = ensemble.weighted_class_means(means, counts)
    without, present = ensemble.leave_one_out(means, counts > 0, 4)
    for _ in range(1000):
        order = torch.tensor(source.permutation(12))
        found = ensemble.weighted_class_means(means[order], counts[order])
        assert torch.equal(found[0], first)
        assert torch.equal(found[1], totals)
        own = int((order == 4).nonzero())
        found = ensemble.leave_one_out(means[order], counts[order] > 0, own)
        assert torch.equal(found[0], without)
        assert torch.equal(found[1], present)


def test_refuses_other_arguments() -> None:
    means, present = torch.zeros(3, 4, 2), torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"means: expected shape \(K, N, C\)"):
        ensemble.weighted_class_means(means[0], present[0])
    with pytest.raises(ValueError, match=r"present: expected shape \(3, 4\), found \(3, 2\)"):
        ensemble.leave_one_out(means, present[:, :2], None)
    for own in (-1, 3):
        with pytest.raises(ValueError, match=f"own: expected None or a row from 0 to 2, found {own}"):
            ensemble.leave_one_out(means, present, own)
    with pytest.raises(ValueError, match="counts: expected no number below 0, found -1"):
        ensemble.weighted_class_means(means, -present.long())
