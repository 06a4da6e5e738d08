"""Plain means, ERA and the vote against NumPy in float64; and what all rules of the package have in common."""

import math
import re
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import ensemble
from tests.ensemble.conftest import (
    CLASSES,
    COUNTS,
    GIVES_LOGITS,
    LABELS,
    LOGITS,
    RULES,
    SIZES,
    TEACHERS,
    entropy,
    softmax,
)

Rule = Callable[[Tensor], Tensor]


def rules(without: Iterable[str] = ()) -> pytest.MarkDecorator:
    names = [name for name in RULES if name not in without]
    return pytest.mark.parametrize("rule", [RULES[name] for name in names], ids=names)


every_rule = rules()
by_sample = rules(without=["exp_guard"])  # which weighs a teacher by all of its samples

# --- each rule against its formula


def test_mean_logits(logits: Tensor) -> None:
    np.testing.assert_allclose(ensemble.mean_logits(logits), LOGITS.sum(axis=0) / TEACHERS, rtol=1e-12)


def test_mean_probabilities(logits: Tensor) -> None:
    found = ensemble.mean_probabilities(logits)
    np.testing.assert_allclose(found, softmax(LOGITS).sum(axis=0) / TEACHERS, rtol=1e-12)


def test_mean_standardised_logits(logits: Tensor) -> None:
    centred = LOGITS - LOGITS.mean(axis=2, keepdims=True)
    paper = (centred / LOGITS.std(axis=2, keepdims=True)).mean(axis=0)
    code = (centred / (1e-7 + LOGITS.std(axis=2, keepdims=True, ddof=1))).mean(axis=0)
    np.testing.assert_allclose(ensemble.mean_standardised_logits(logits), paper, rtol=1e-9)
    np.testing.assert_allclose(ensemble.mean_standardised_logits(logits, mode="code"), code, rtol=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_era_is_the_softmax_of_probabilities(logits: Tensor, temperature: float) -> None:
    expected = softmax(softmax(LOGITS).mean(axis=0) / temperature)
    np.testing.assert_allclose(ensemble.era(logits, temperature=temperature), expected, rtol=1e-9)
    mean = ensemble.mean_probabilities(logits)
    np.testing.assert_allclose(ensemble.reduce_entropy(mean, temperature=temperature), expected, rtol=1e-9)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 7.0])
def test_enhanced_era_is_a_power(logits: Tensor, exponent: float) -> None:
    powers = softmax(LOGITS).mean(axis=0) ** exponent
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ensemble.enhanced_era(logits, exponent=exponent), expected, rtol=1e-9)
    mean = ensemble.mean_probabilities(logits)
    np.testing.assert_allclose(ensemble.sharpen(mean, exponent=exponent), expected, rtol=1e-9)


def test_vote_counts_the_best_classes(logits: Tensor) -> None:
    expected = np.stack([np.bincount(best, minlength=CLASSES) / TEACHERS for best in LOGITS.argmax(axis=2).T])
    np.testing.assert_allclose(ensemble.vote(logits), expected, rtol=1e-12)


def test_a_tied_teacher_splits_its_vote() -> None:
    found = ensemble.vote(torch.tensor([[[1.0, 1.0, 0.0, 1.0]], [[0.0, 5.0, 0.0, 0.0]]]))
    np.testing.assert_allclose(found, [[1 / 6, 1 / 6 + 1 / 2, 0, 1 / 6]], rtol=1e-6)


# --- particular properties


def test_standardised_logits_do_not_depend_on_scale_or_shift(logits: Tensor) -> None:
    scale = torch.linspace(0.1, 50, TEACHERS, dtype=torch.float64)[:, None, None]
    found = ensemble.mean_standardised_logits(scale * logits - 3 * scale)
    np.testing.assert_allclose(found, ensemble.mean_standardised_logits(logits), rtol=1e-9)
    np.testing.assert_allclose(found.sum(dim=1), 0, atol=1e-12)
    assert not np.allclose(ensemble.mean_logits(scale * logits), ensemble.mean_logits(logits), rtol=0.5)


@pytest.mark.parametrize("mode", ["paper", "code"])
def test_a_constant_row_becomes_zero(mode: str) -> None:
    rows = torch.full((1, 2, 3), 0.1, dtype=torch.float64)
    assert ensemble.mean_standardised_logits(rows, mode=mode).tolist() == [[0, 0, 0]] * 2  # type: ignore[arg-type]


def test_the_softmax_of_standardised_logits_is_as_flat_as_documented() -> None:
    one_hot = torch.zeros(1, 1, 10, dtype=torch.float64)
    one_hot[0, 0, 3] = 1e6
    largest = torch.softmax(ensemble.mean_standardised_logits(one_hot), dim=1).max().item()
    assert largest == pytest.approx(1 / (1 + 9 * math.exp(-10 / 3)), rel=1e-9)


def test_era_sharpens_few_classes_and_flattens_many() -> None:
    values = torch.Generator().manual_seed(0)
    few, many = (0.3 * torch.randn(1, 50, classes, generator=values) for classes in (4, 40))
    assert (entropy(ensemble.era(few).numpy()) < entropy(ensemble.mean_probabilities(few).numpy())).all()
    assert (entropy(ensemble.era(many).numpy()) > entropy(ensemble.mean_probabilities(many).numpy())).all()


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_enhanced_era_never_raises_the_entropy_of_a_row(classes: int) -> None:
    values = torch.randn(3, 500, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    before = entropy(ensemble.mean_probabilities(3 * values).numpy())
    last = before
    for exponent in (1.0, 1.5, 2.0, 10.0):
        after = entropy(ensemble.enhanced_era(3 * values, exponent=exponent).numpy())
        assert (after <= last + 1e-12).all()
        last = after
    assert (last < before).all()


def test_era_and_its_power_form_keep_the_order_within_a_row(logits: Tensor) -> None:
    order = ensemble.mean_probabilities(logits).argsort(dim=1)
    assert torch.equal(ensemble.era(logits).argsort(dim=1), order)
    assert torch.equal(ensemble.enhanced_era(logits).argsort(dim=1), order)


def test_a_large_exponent_leaves_no_row_without_a_class() -> None:
    found = ensemble.sharpen(torch.full((1, 1000), 1e-3), exponent=200.0)  # 1e-600 is no float64
    np.testing.assert_allclose(found, 1e-3, rtol=1e-5)


def test_the_mean_of_losses_and_the_loss_of_the_mean_have_one_gradient(logits: Tensor) -> None:
    student = torch.randn(LOGITS.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()

    def divergence(teacher: Tensor) -> Tensor:
        return (teacher * (teacher.log() - torch.log_softmax(student, dim=1))).sum(dim=1).mean()

    of_mean = divergence(ensemble.mean_probabilities(logits))
    mean_of = torch.stack([divergence(torch.softmax(teacher, dim=1)) for teacher in logits]).mean()
    of_logits = divergence(torch.softmax(ensemble.mean_logits(logits), dim=1))
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (of_mean, mean_of, of_logits)]
    assert of_mean.item() < mean_of.item()
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-9, atol=1e-15)
    assert (gradients[2] - gradients[0]).abs().max() > 1e-3


def test_one_loud_teacher_owns_the_mean_of_logits_and_not_of_probabilities(logits: Tensor) -> None:
    truth = torch.zeros_like(logits)
    truth[:, :, 0] = 5.0
    truth[-1] = torch.tensor([0.0, 1e4, 0.0, 0.0])
    assert (ensemble.mean_logits(truth).argmax(dim=1) == 1).all()
    assert (ensemble.mean_probabilities(truth).argmax(dim=1) == 0).all()


# --- what all rules have in common


@every_rule
def test_equal_teachers_are_one_teacher(rule: Rule, logits: Tensor) -> None:
    one = logits[:1]
    for teachers in (2, 5, 8):
        np.testing.assert_allclose(rule(one.expand(teachers, -1, -1)), rule(one), rtol=1e-9, atol=1e-15)


@rules(without=GIVES_LOGITS)
def test_a_distribution_in_each_row(rule: Rule) -> None:
    saturated = torch.randn(5, 50, 10, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 4, 50)[:, None]
    found = rule(saturated.double())
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(dim=1), 1.0, rtol=1e-9)


@every_rule
def test_computes_in_float64_and_keeps_type_and_input(rule: Rule, logits: Tensor) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        rounded = logits.to(dtype).requires_grad_()
        before = rounded.detach().clone()
        found = rule(rounded)
        assert found.dtype == dtype
        assert not found.requires_grad
        assert torch.equal(found, rule(rounded.detach().double()).to(dtype))
        assert torch.equal(rounded, before)


@by_sample
def test_a_sample_does_not_depend_on_the_others(rule: Rule, logits: Tensor) -> None:
    np.testing.assert_allclose(rule(logits[:, 2:3]), rule(logits)[2:3], rtol=1e-9)


@every_rule
def test_permuted_classes_permute_the_result(rule: Rule, logits: Tensor) -> None:
    classes = torch.tensor([2, 0, 3, 1])
    np.testing.assert_allclose(rule(logits[:, :, classes]), rule(logits)[:, classes], rtol=1e-9)


@by_sample
def test_no_sample_is_no_row(rule: Rule) -> None:
    assert rule(torch.zeros(3, 0, 4)).shape == (0, 4)


@every_rule
def test_a_thousand_permutations_do_not_change_a_bit(rule: Rule) -> None:
    # 20 teachers, among them two that are equal and two that differ in their last number only.
    teachers = 3 * torch.randn(20, 4, 10, generator=torch.Generator().manual_seed(5))
    teachers[7], teachers[3], teachers[11] = teachers[1], teachers[2], teachers[2]
    teachers[11, -1, -1] += 1
    expected, shuffled = rule(teachers), torch.Generator().manual_seed(6)
    for _ in range(1000):
        assert torch.equal(rule(teachers[torch.randperm(20, generator=shuffled)]), expected)


def test_a_sum_in_order_of_arrival_would_change_bits() -> None:
    teachers = 3 * torch.randn(20, 400, 10, generator=torch.Generator().manual_seed(5))
    shuffled, rows = torch.Generator().manual_seed(6), torch.softmax(teachers.double(), dim=2)
    sums = {tuple(rows[torch.randperm(20, generator=shuffled)].sum(dim=0).flatten().tolist()) for _ in range(5)}
    assert len(sums) > 1


def test_permutations_of_teachers_with_what_is_known_of_them() -> None:
    teachers = 3 * torch.randn(7, 6, 4, generator=torch.Generator().manual_seed(5))
    teachers[2] = teachers[4]  # equal logits, other sizes and counts
    labels, counts, sizes = torch.tensor(LABELS), torch.tensor(COUNTS), torch.tensor(SIZES)

    def combine(order: Tensor) -> list[Tensor]:
        logits = teachers[order]
        return [
            ensemble.weighted_probabilities(logits, sizes[order]),
            ensemble.weighted_logits(logits, sizes[order] / 7),
            ensemble.ca_mkd(logits, labels),
            ensemble.by_class_counts(logits, counts[order]),
            ensemble.by_label_counts(logits, counts[order], labels),
            ensemble.exp_guard(logits, sizes[order] / 50, eta=2.0).probabilities,
        ]

    expected, shuffled = combine(torch.arange(7)), torch.Generator().manual_seed(6)
    for _ in range(1000):
        found = combine(torch.randperm(7, generator=shuffled))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@every_rule
@pytest.mark.parametrize("shape", [(4, 3), (0, 4, 3), (2, 4, 0)])
def test_refuses_other_shapes(rule: Rule, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits: expected shape \(K, N, C\).*found \(" + str(shape[0])):
        rule(torch.zeros(shape))


@every_rule
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e200])
def test_refuses_numbers_that_cannot_be_logits(rule: Rule, number: float, logits: Tensor) -> None:
    logits[2, 3, 1] = number
    with pytest.raises(ValueError, match=f"logits: expected (finite )?numbers.*found {re.escape(str(number))} at "):
        rule(logits)
    with pytest.raises(ValueError, match=r"logits: expected finite numbers.*found (nan|inf|-inf) at "):
        rule(logits.float())  # 1e200 is infinity there


@every_rule
def test_takes_all_other_numbers_of_float32(rule: Rule) -> None:
    largest = torch.finfo(torch.float32).max
    teachers = torch.tensor([[[largest, -largest, 0.0]], [[largest, 1.0, 0.0]], [[largest, -1.0, 2.0]]])
    found = rule(teachers)
    assert torch.isfinite(found).all()
    assert found.argmax() == 0


@every_rule
def test_refuses_integers(rule: Rule) -> None:
    with pytest.raises(ValueError, match=r"logits: expected floating-point numbers, found torch\.int64"):
        rule(torch.zeros(2, 3, 4, dtype=torch.int64))


def test_refuses_settings_out_of_range(logits: Tensor) -> None:
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"temperature: expected a finite number above 0, found {value}"):
            ensemble.era(logits, temperature=value)
        with pytest.raises(ValueError, match=f"exponent: expected a finite number above 0, found {value}"):
            ensemble.enhanced_era(logits, exponent=value)
    with pytest.raises(ValueError, match="mode: expected one of 'paper', 'code', found 'other'"):
        ensemble.mean_standardised_logits(logits, mode="other")  # type: ignore[arg-type]


def test_refuses_what_is_not_a_distribution() -> None:
    for rule in (ensemble.reduce_entropy, ensemble.sharpen):
        with pytest.raises(ValueError, match=r"probabilities: expected shape \(N, C\).*found \(2,\)"):
            rule(torch.ones(2))
        with pytest.raises(ValueError, match=r"probabilities: expected no number below 0, found -1\.0"):
            rule(torch.tensor([[2.0, -1.0]]))
        with pytest.raises(
            ValueError, match=r"probabilities: expected rows that sum to 1, found one that sums to 3\.0"
        ):
            rule(torch.tensor([[0.5, 0.5], [1.0, 2.0]]))
        with pytest.raises(ValueError, match="probabilities: expected finite numbers"):
            rule(torch.tensor([[math.nan, 1.0]]))
