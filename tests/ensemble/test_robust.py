"""Robust rules against NumPy in float64, their breakdown points, and ExpGuard's memory."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import ensemble
from tests.ensemble.conftest import LOGITS, TEACHERS, Array, softmax

PROBABILITIES = softmax(LOGITS)
HONEST = np.array([0.6, 0.1, 0.3])


def to_logits(rows: Array) -> Tensor:
    """Logits whose softmax is these probabilities."""
    return torch.tensor(rows).clamp(min=1e-300).log()


def distribution(rows: Array) -> Array:
    divided: Array = rows / rows.sum(axis=1, keepdims=True)
    return divided


def attacked(liars: int, teachers: int = 9, spread: float = 0.0) -> Tensor:
    """Teachers of whom most are honest, and the others all name the least likely class."""
    rows = np.tile(HONEST, (teachers, 50, 1))
    rows = rows + spread * np.random.default_rng(0).uniform(-1, 1, rows.shape)
    rows[:liars] = [0.0, 1.0, 0.0]
    return to_logits(rows / rows.sum(axis=2, keepdims=True))


# --- against NumPy


@pytest.mark.parametrize("teachers", [TEACHERS, TEACHERS - 1, 2, 1])
def test_coordinate_median(teachers: int) -> None:
    found = ensemble.coordinate_median(torch.tensor(LOGITS[:teachers]))
    np.testing.assert_allclose(found, distribution(np.median(PROBABILITIES[:teachers], axis=0)), rtol=1e-9)


@pytest.mark.parametrize("trim", [0, 1, 2, 3])
def test_trimmed_mean(trim: int) -> None:
    expected = distribution(np.sort(PROBABILITIES, axis=0)[trim : TEACHERS - trim].mean(axis=0))
    np.testing.assert_allclose(ensemble.trimmed_mean(torch.tensor(LOGITS), trim=trim), expected, rtol=1e-9)


def filtered(rows: Array, keep: int) -> Array:
    """Keep the predictions ``(K, C)`` of one sample whose projection on the main axis is the smallest."""
    centred = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(centred)
    kept: Array = rows[np.argsort(np.abs(centred @ axes[0]))[:keep]]
    return kept


@pytest.mark.parametrize(
    # By hand for 7 teachers: 3 liars at most, so 2 + 2 are left out in the paper. In the code first floor(7 - 3/2) = 5
    # are kept, then those up to number ceil((1 - 3/14) * 4) = 4 from zero: all 5.
    ("options", "kept"),
    [({}, (5, 3)), ({"liars": 2}, (6, 5)), ({"liars": 0}, (7, 7)), ({"mode": "code"}, (5, 5))],
)
def test_cronus(options: dict[str, int | str], kept: tuple[int, int]) -> None:
    expected = [filtered(filtered(rows, kept[0]), kept[1]).mean(axis=0) for rows in PROBABILITIES.transpose(1, 0, 2)]
    np.testing.assert_allclose(ensemble.cronus(torch.tensor(LOGITS), **options), expected, rtol=1e-9)  # type: ignore[arg-type]


def test_the_quantile_of_the_code_is_that_of_numpy() -> None:
    values = np.random.default_rng(0).random((40, 6, 4))
    for teachers in (8, 20, 40):
        share = 1 - (teachers // 2 - 1) / (2 * teachers)
        expected = []
        for rows in softmax(values[:teachers]).transpose(1, 0, 2):
            left = filtered(rows, int(share * teachers))
            centred = left - left.mean(axis=0)
            scores = np.abs(centred @ np.linalg.svd(centred)[2][0])
            expected.append(left[scores <= np.quantile(scores, share, method="higher")].mean(axis=0))
        found = ensemble.cronus(torch.tensor(values[:teachers]), mode="code")
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0, 4.0])
def test_exp_guard_over_three_rounds(eta: float) -> None:
    weights, scores = np.ones(TEACHERS), torch.zeros(TEACHERS)
    for turn in range(3):
        rows = softmax(LOGITS * (1 + turn))
        found = ensemble.exp_guard(
            torch.tensor(LOGITS * (1 + turn)), scores, eta=eta, centre=ensemble.mean_probabilities
        )
        weights = weights * np.exp(-eta * np.linalg.norm(rows - rows.mean(axis=0), axis=2).mean(axis=1))
        weights = weights / weights.sum()
        np.testing.assert_allclose(found.weights, weights, rtol=1e-9)
        np.testing.assert_allclose(found.probabilities, np.einsum("k,knc->nc", weights, rows), rtol=1e-9)
        scores = found.scores


# --- what they withstand, and what not

Rule = Callable[[Tensor], Tensor]
ROBUST: dict[str, Rule] = {
    "coordinate_median": ensemble.coordinate_median,
    "trimmed_mean": lambda logits: ensemble.trimmed_mean(logits, trim=(len(logits) - 1) // 2),
    "geometric_median": ensemble.geometric_median,
    "cronus": ensemble.cronus,
    "exp_guard": lambda logits: ensemble.exp_guard(logits, torch.zeros(len(logits)), eta=1000.0).probabilities,
}
every_robust_rule = pytest.mark.parametrize("rule", ROBUST.values(), ids=list(ROBUST))


@every_robust_rule
@pytest.mark.parametrize(("liars", "teachers"), [(1, 3), (2, 5), (4, 9), (3, 8), (9, 20), (49, 100)])
def test_a_minority_changes_nothing_where_the_others_agree(rule: Rule, liars: int, teachers: int) -> None:
    np.testing.assert_allclose(rule(attacked(liars, teachers)), np.tile(HONEST, (50, 1)), rtol=1e-6)


@every_robust_rule
@pytest.mark.parametrize(("liars", "teachers"), [(2, 3), (5, 9), (51, 100)])
def test_a_majority_owns_the_result(rule: Rule, liars: int, teachers: int) -> None:
    assert (rule(attacked(liars, teachers)).argmax(dim=1) == 1).all()


@every_robust_rule
def test_a_minority_does_little_where_the_others_nearly_agree(rule: Rule) -> None:
    found = rule(attacked(4, spread=0.02))
    assert (found - torch.tensor(HONEST)).abs().max() < 0.1
    mean = ensemble.mean_probabilities(attacked(4, spread=0.02))
    assert (mean - torch.tensor(HONEST)).abs().max() > 0.35


@pytest.mark.parametrize("liars", range(5))
def test_trimmed_numbers_stay_among_the_honest_ones(liars: int) -> None:
    logits = attacked(liars, spread=0.05)
    honest = softmax(logits.numpy())[liars:]
    ordered = np.sort(softmax(logits.numpy()), axis=0)[liars : 9 - liars].mean(axis=0)
    found = ensemble.trimmed_mean(logits, trim=liars)
    np.testing.assert_allclose(found, distribution(ordered), rtol=1e-9)
    assert (ordered >= honest.min(axis=0) - 1e-15).all()
    assert (ordered <= honest.max(axis=0) + 1e-15).all()


def test_trimming_one_too_few_lets_a_lie_through() -> None:
    assert (ensemble.trimmed_mean(attacked(4), trim=3)[:, 1] > 0.2).all()
    assert (ensemble.cronus(attacked(4), liars=2)[:, 1] > 0.2).all()


def test_no_trimming_is_the_mean_and_all_trimming_the_median() -> None:
    logits = torch.tensor(LOGITS)
    np.testing.assert_allclose(ensemble.trimmed_mean(logits, trim=0), ensemble.mean_probabilities(logits), rtol=1e-12)
    assert torch.equal(ensemble.trimmed_mean(logits, trim=3), ensemble.coordinate_median(logits))


def test_without_any_consensus_the_median_is_uniform() -> None:
    apart = to_logits(np.eye(5)[:, None]) * 10  # each is certain of another class; exactly 0 elsewhere
    assert ensemble.coordinate_median(apart).tolist() == [[0.2] * 5]


# --- ExpGuard's memory


def test_a_liar_loses_its_weight_for_good() -> None:
    scores, masses = torch.zeros(9), []
    for _ in range(4):
        found = ensemble.exp_guard(attacked(3), scores, eta=4.0)
        scores = found.scores
        masses.append(found.weights[:3].sum().item())
    assert masses == sorted(masses, reverse=True)
    assert masses[-1] < 1e-3
    reformed = ensemble.exp_guard(attacked(0), scores, eta=4.0)
    assert reformed.weights[:3].sum() < 1e-3
    stranger = ensemble.exp_guard(attacked(0), torch.zeros(9), eta=4.0)
    np.testing.assert_allclose(stranger.weights, 1 / 9, rtol=1e-6)


def test_the_memory_is_explicit_and_additive() -> None:
    logits, zeros = torch.tensor(LOGITS), torch.zeros(TEACHERS)
    once = ensemble.exp_guard(logits, zeros, eta=1.0)
    twice = ensemble.exp_guard(logits, once.scores, eta=1.0)
    np.testing.assert_allclose(twice.scores, 2 * once.scores, rtol=1e-12)
    assert once.scores.dtype == torch.float64
    assert torch.equal(zeros, torch.zeros(TEACHERS))
    # Twice the distance at one rate weighs as once at twice the rate.
    np.testing.assert_allclose(twice.weights, ensemble.exp_guard(logits, zeros, eta=2.0).weights, rtol=1e-9)


def test_ten_thousand_rounds_neither_overflow_nor_end_in_zeros() -> None:
    found = ensemble.exp_guard(torch.tensor(LOGITS), torch.full((TEACHERS,), 1e4), eta=100.0)
    assert torch.isfinite(found.probabilities).all()
    np.testing.assert_allclose(found.weights.sum(), 1, rtol=1e-12)


def test_scores_and_weights_stay_with_their_teachers() -> None:
    logits, scores = torch.tensor(LOGITS), torch.linspace(0, 1, TEACHERS, dtype=torch.float64)
    expected = ensemble.exp_guard(logits, scores, eta=1.0)
    for seed in range(20):
        order = torch.randperm(TEACHERS, generator=torch.Generator().manual_seed(seed))
        found = ensemble.exp_guard(logits[order], scores[order], eta=1.0)
        assert torch.equal(found.probabilities, expected.probabilities)
        assert torch.equal(found.scores, expected.scores[order])
        assert torch.equal(found.weights, expected.weights[order])


def test_no_eta_is_the_mean_of_probabilities() -> None:
    found = ensemble.exp_guard(torch.tensor(LOGITS), torch.rand(TEACHERS), eta=0.0)
    np.testing.assert_allclose(found.probabilities, PROBABILITIES.mean(axis=0), rtol=1e-9)


# --- what they refuse


def test_refuses_settings_out_of_range() -> None:
    logits = torch.tensor(LOGITS)
    for trim in (-1, 4, 1.0):
        with pytest.raises(ValueError, match=f"trim: expected an integer from 0 to 3 for 7 teachers, found {trim}"):
            ensemble.trimmed_mean(logits, trim=trim)  # type: ignore[arg-type]
    for liars in (-1, 4, 0.5):
        with pytest.raises(ValueError, match=f"liars: expected an integer from 0 to 3 for 7 teachers, found {liars}"):
            ensemble.cronus(logits, liars=liars)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode: expected one of 'paper', 'code', found 'fast'"):
        ensemble.cronus(logits, mode="fast")  # type: ignore[arg-type]


def test_exp_guard_refuses_what_cannot_be_its_memory() -> None:
    logits, zeros = torch.tensor(LOGITS), torch.zeros(TEACHERS)
    with pytest.raises(ValueError, match=r"scores: expected shape \(7,\), found \(6,\)"):
        ensemble.exp_guard(logits, zeros[1:], eta=1.0)
    for number, expected in ((math.nan, "finite numbers"), (math.inf, "finite numbers"), (-0.5, "no number below 0")):
        with pytest.raises(ValueError, match=rf"scores: expected {expected}, found {number} at \(6,\)"):
            ensemble.exp_guard(logits, torch.tensor([0.0] * 6 + [number]), eta=1.0)
    for eta in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"eta: expected a finite number, 0 or above, found {eta}"):
            ensemble.exp_guard(logits, zeros, eta=eta)
    with pytest.raises(ValueError, match=r"centre: expected shape \(6, 4\), found \(7, 6, 4\)"):
        ensemble.exp_guard(logits, zeros, eta=1.0, centre=lambda z: z)
    with pytest.raises(ValueError, match=r"logits: expected at least one sample, found shape \(7, 0, 4\)"):
        ensemble.exp_guard(logits[:, :0], zeros, eta=1.0)


def test_exp_guard_refuses_a_centre_by_name() -> None:
    with pytest.raises(ValueError, match=r"centre: expected a rule such as ensemble.coordinate_median, found 'median'"):
        ensemble.exp_guard(torch.tensor(LOGITS), torch.zeros(TEACHERS), eta=1.0, centre="median")  # type: ignore[arg-type]


def cronus_by_hand(logits: Array) -> Array:
    """Cronus of the paper, sample by sample, by the singular value decomposition of the centred rows."""
    teachers = len(logits)
    out = -(-((teachers + 1) // 2 - 1) // 2)
    means = []
    for sample in range(logits.shape[1]):
        rows = softmax(logits[:, sample])
        for _ in range(2):
            centred = rows - rows.mean(axis=0)
            direction = np.linalg.svd(centred)[2][0]
            kept = np.argsort(np.abs(centred @ direction))[: len(rows) - out]
            rows = rows[np.sort(kept)]
        means.append(rows.mean(axis=0))
    return np.stack(means)


@pytest.mark.parametrize("teachers", [5, 12, 40])
def test_cronus_with_more_classes_than_teachers_equals_the_formula(teachers: int) -> None:
    logits = 2 * np.random.default_rng(teachers).normal(size=(teachers, 8, 30))  # 40 teachers are more than 30 classes
    found = ensemble.cronus(torch.tensor(logits))
    np.testing.assert_allclose(found, cronus_by_hand(logits), rtol=1e-9)
    order = torch.randperm(teachers, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ensemble.cronus(torch.tensor(logits)[order]), found)


def test_rounding_does_not_choose_between_the_last_two_of_cronus() -> None:
    source = np.random.default_rng(5)
    logits = source.normal(size=(3, 2000, 4))
    nearly = logits.copy()  # its first samples, by whose bytes the teachers are sorted, stay as they are
    nearly[:, 1000:] *= 1 + source.uniform(-1e-14, 1e-14, (3, 1000, 4))
    found, other = (ensemble.cronus(torch.tensor(rows), liars=1) for rows in (logits, nearly))
    np.testing.assert_allclose(found, other, atol=1e-10)


def test_cronus_of_teachers_that_agree_is_what_they_say() -> None:
    row = np.random.default_rng(0).normal(size=(1, 3, 30))
    found = ensemble.cronus(torch.tensor(np.repeat(row, 7, axis=0)))
    np.testing.assert_allclose(found, softmax(row[0]), rtol=1e-12)
