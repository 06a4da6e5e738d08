"""Weighted means against NumPy in float64, and the properties of weights."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import ensemble
from tests.ensemble.conftest import CLASSES, COUNTS, LABELS, LOGITS, SAMPLES, SIZES, TEACHERS, Array, entropy, softmax

PROBABILITIES = softmax(LOGITS)
LOSSES = -np.log(PROBABILITIES[:, np.arange(SAMPLES), LABELS])


def shares(values: Array) -> Array:
    divided: Array = values / values.sum(axis=0)
    return divided


def mean_under(weights: Array, rows: Array) -> Array:
    """Weighted mean of ``(K, N, C)`` under ``(K, N)``, teacher by teacher."""
    total = np.zeros(rows.shape[1:])
    for weight, row in zip(weights, rows, strict=True):
        total += weight[:, None] * row
    return total


H = entropy(PROBABILITIES)
EXPECTED: dict[str, tuple[Callable[[Tensor], Tensor], Array]] = {
    "entropy": (ensemble.entropy_weights, shares(1 / H)),
    "confidence": (ensemble.confidence_weights, shares(PROBABILITIES.max(axis=2))),
    "variance": (ensemble.variance_weights, shares(LOGITS.var(axis=2))),
    "variance of probabilities": (
        lambda z: ensemble.variance_weights(z, of="probabilities"),
        shares(PROBABILITIES.var(axis=2)),
    ),
    "ebkd": (ensemble.ebkd_weights, (1 - H / H.sum(axis=0)) / (TEACHERS - 1)),
    "ca_mkd": (
        lambda z: ensemble.ca_mkd_weights(z, torch.tensor(LABELS)[: z.shape[1]]),
        (1 - softmax(LOSSES, axis=0)) / (TEACHERS - 1),
    ),
}
every_weighting = pytest.mark.parametrize(("weigh", "expected"), EXPECTED.values(), ids=list(EXPECTED))
Weigh = Callable[[Tensor], Tensor]


@every_weighting
def test_weights_are_those_of_the_formula(weigh: Weigh, expected: Array, logits: Tensor) -> None:
    np.testing.assert_allclose(weigh(logits), expected, rtol=1e-9)


@every_weighting
def test_weights_are_not_negative_and_sum_to_one(weigh: Weigh, expected: Array) -> None:
    loud = torch.randn(5, SAMPLES, CLASSES, generator=torch.Generator().manual_seed(0))
    for scale in (1e-20, 1.0, 30.0, 1e30):  # from all alike to no entropy at all
        found = weigh(scale * loud.double())
        assert found.dtype == torch.float64
        assert (found >= 0).all()
        np.testing.assert_allclose(found.sum(dim=0), 1, rtol=1e-12)


@every_weighting
def test_equal_teachers_have_equal_weights(weigh: Weigh, expected: Array, logits: Tensor) -> None:
    np.testing.assert_allclose(weigh(logits[:1].expand(4, -1, -1)), 0.25, rtol=1e-12)
    np.testing.assert_allclose(weigh(logits[:1]), 1.0, rtol=0)


@every_weighting
def test_weights_stay_with_their_teachers(weigh: Weigh, expected: Array, logits: Tensor) -> None:
    for seed in range(20):
        order = torch.randperm(TEACHERS, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(weigh(logits[order]), weigh(logits)[order])


@every_weighting
def test_teachers_without_any_information_count_the_same(weigh: Weigh, expected: Array) -> None:
    np.testing.assert_allclose(weigh(torch.zeros(3, SAMPLES, CLASSES, dtype=torch.float64)), 1 / 3, rtol=1e-12)


def test_the_combinations_are_means_under_their_weights(logits: Tensor) -> None:
    labels = torch.tensor(LABELS)
    for name, found in {
        "entropy": ensemble.by_entropy(logits),
        "confidence": ensemble.by_confidence(logits),
        "variance": ensemble.by_variance(logits),
        "variance of probabilities": ensemble.by_variance(logits, of="probabilities"),
        "ebkd": ensemble.ebkd(logits),
        "ca_mkd": ensemble.ca_mkd(logits, labels),
    }.items():
        np.testing.assert_allclose(found, mean_under(EXPECTED[name][1], PROBABILITIES), rtol=1e-9, err_msg=name)


def test_given_weights(logits: Tensor) -> None:
    expected = mean_under(shares(np.repeat(SIZES[:, None], SAMPLES, axis=1)), PROBABILITIES)
    np.testing.assert_allclose(ensemble.weighted_probabilities(logits, torch.tensor(SIZES)), expected, rtol=1e-9)
    per_sample = np.random.default_rng(0).random((TEACHERS, SAMPLES))
    found = ensemble.weighted_logits(logits, torch.tensor(per_sample))
    np.testing.assert_allclose(found, mean_under(shares(per_sample), LOGITS), rtol=1e-9, atol=1e-12)


def test_equal_weights_are_the_plain_mean_and_zero_weights_are_absence(logits: Tensor) -> None:
    equal = torch.full((TEACHERS,), 1e300, dtype=torch.float64).sqrt() / 10
    np.testing.assert_allclose(ensemble.weighted_logits(logits, equal), ensemble.mean_logits(logits), rtol=1e-9)
    present = torch.arange(TEACHERS) >= 2
    found = ensemble.weighted_probabilities(logits, present.long())
    np.testing.assert_allclose(found, ensemble.mean_probabilities(logits[2:]), rtol=1e-9)


def test_weights_by_class_counts(logits: Tensor) -> None:
    counts = COUNTS.copy()
    counts[:, 1] = 0  # nobody holds class 1
    expected = counts / np.maximum(counts.sum(axis=0), 1)
    expected[:, 1] = 1 / TEACHERS
    np.testing.assert_allclose(ensemble.class_count_weights(torch.tensor(counts)), expected, rtol=1e-9)

    per_class = np.einsum("knc,kc->nc", PROBABILITIES, expected)
    per_class /= per_class.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ensemble.by_class_counts(logits, torch.tensor(counts)), per_class, rtol=1e-9)

    by_label = np.stack([expected[:, label] @ LOGITS[:, n] for n, label in enumerate(LABELS)])
    found = ensemble.by_label_counts(logits, torch.tensor(counts), torch.tensor(LABELS))
    np.testing.assert_allclose(found, by_label, rtol=1e-9, atol=1e-12)


def test_a_class_is_taught_by_those_who_hold_it(logits: Tensor) -> None:
    holders = torch.zeros(TEACHERS, CLASSES, dtype=torch.int64)
    holders[3] = 10
    np.testing.assert_allclose(ensemble.by_class_counts(logits, holders), PROBABILITIES[3], rtol=1e-9)
    found = ensemble.by_label_counts(logits, holders, torch.tensor(LABELS))
    np.testing.assert_allclose(found, LOGITS[3], rtol=1e-9)


def test_a_certain_teacher_takes_all_by_entropy(logits: Tensor) -> None:
    logits[2], logits[5] = torch.tensor([0.0, 0, 1e6, 0]), torch.tensor([1e6, 0.0, 0, 0])
    found = ensemble.entropy_weights(logits)
    assert found[:, 0].tolist() == [0, 0, 0.5, 0, 0, 0.5, 0]
    np.testing.assert_allclose(ensemble.by_entropy(logits)[0], [0.5, 0, 0.5, 0], atol=1e-15)


def test_variance_follows_the_scale_of_logits_but_not_the_shift(logits: Tensor) -> None:
    found = ensemble.variance_weights(logits + 100 * torch.randn(TEACHERS, SAMPLES, 1, dtype=torch.float64))
    np.testing.assert_allclose(found, EXPECTED["variance"][1], rtol=1e-9)
    logits[0] *= 1000
    assert (ensemble.variance_weights(logits)[0] > 0.99).all()


def test_ebkd_and_ca_mkd_prefer_certain_and_right_teachers() -> None:
    sure, unsure, wrong = [4.0, 0, 0], [0.5, 0.0, 0], [0.0, 9.0, 0]
    teachers = torch.tensor([[sure], [unsure], [wrong]])
    by_entropy = ensemble.ebkd_weights(teachers).flatten()
    by_label = ensemble.ca_mkd_weights(teachers, torch.tensor([0])).flatten()
    assert by_entropy[2] > by_entropy[0] > by_entropy[1]  # it cannot know that the last one is wrong
    assert by_label[0] > by_label[1] > by_label[2]
    assert max(by_entropy.max(), by_label.max()) <= 0.5 + 1e-12  # 1 / (K - 1)


def test_the_loss_with_the_combination_is_the_weighted_sum_of_losses(logits: Tensor) -> None:
    log_student = torch.log_softmax(torch.randn(SAMPLES, CLASSES, dtype=torch.float64), dim=1)
    combined = -(ensemble.ca_mkd(logits, torch.tensor(LABELS)) * log_student).sum(dim=1)
    single = -(torch.softmax(logits, dim=2) * log_student).sum(dim=2)
    np.testing.assert_allclose(combined, (EXPECTED["ca_mkd"][1] * single.numpy()).sum(axis=0), rtol=1e-9)


@pytest.mark.parametrize("rule", [ensemble.weighted_probabilities, ensemble.weighted_logits])
def test_refuses_other_weights(rule: Callable[[Tensor, Tensor], Tensor], logits: Tensor) -> None:
    for shape in ((TEACHERS - 1,), (TEACHERS, SAMPLES, 1), (SAMPLES, TEACHERS), ()):
        with pytest.raises(ValueError, match=r"weights: expected shape \(7,\) or \(7, 6\), found"):
            rule(logits, torch.ones(shape))
    for number in (math.nan, math.inf, -0.5):
        weights = torch.ones(TEACHERS)
        weights[4] = number
        with pytest.raises(ValueError, match=rf"weights: expected .*found {number} at \(4,\)"):
            rule(logits, weights)
    nobody = torch.ones(TEACHERS, SAMPLES)
    nobody[:, 2] = 0
    with pytest.raises(ValueError, match="weights: expected at least one above 0 for each sample"):
        rule(logits, nobody)


def test_refuses_other_labels_and_counts(logits: Tensor) -> None:
    labels = torch.tensor(LABELS)
    with pytest.raises(ValueError, match=r"labels: expected shape \(6,\), found \(5,\)"):
        ensemble.ca_mkd(logits, labels[1:])
    with pytest.raises(ValueError, match=r"labels: expected class numbers of type int64, found torch\.int32"):
        ensemble.ca_mkd(logits, labels.int())
    for label in (-1, CLASSES):
        labels[0] = label
        with pytest.raises(ValueError, match=f"labels: expected class numbers from 0 to 3, found .*{label}"):
            ensemble.ca_mkd(logits, labels)
    with pytest.raises(ValueError, match=r"counts: expected shape \(7, 4\), found \(7, 3\)"):
        ensemble.by_class_counts(logits, torch.tensor(COUNTS[:, 1:]))
    with pytest.raises(ValueError, match=r"counts: expected shape \(K, C\).*found \(7,\)"):
        ensemble.class_count_weights(torch.ones(7))
    negative = torch.tensor(COUNTS)
    negative[1, 2] = -4
    with pytest.raises(ValueError, match=r"counts: expected no number below 0, found -4 at \(1, 2\)"):
        ensemble.by_label_counts(logits, negative, torch.tensor(LABELS))
    with pytest.raises(ValueError, match="of: expected one of 'logits', 'probabilities', found 'features'"):
        ensemble.by_variance(logits, of="features")  # type: ignore[arg-type]
