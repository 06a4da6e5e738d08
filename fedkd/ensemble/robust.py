"""Rules that hold out against teachers that lie. All return probabilities.

They work on probabilities, where a liar's reach is bounded, never on raw logits. None is free: with skewed shards and
nobody lying the coordinate median and Cronus lose many points, the geometric median fewer. Always measure the clean
cost too. With half of the teachers lying no rule can help.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedkd.checks import expect_choice, expect_shape, expect_within
from fedkd.ensemble._checks import (
    back_in_place,
    blocks_in_own_order,
    expect_logits,
    expect_not_negative,
    in_own_order,
    own_order,
    probabilities_of,
)
from fedkd.ensemble.geometric import geometric_median

SCORE_STEPS = 2.0**40
"""Cronus tells scores apart down to this part of the largest: far above rounding, far below what matters."""


def coordinate_median(logits: Tensor) -> Tensor:
    """Take the median over the teachers of each probability; the result is probabilities.

    Of an even number of teachers it is the mean of the middle two.
    Rows are divided by their sums afterwards; where all medians are zero, the row is uniform: there is no consensus.
    It breaks down when half of the teachers lie.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.

    Returns:
        A probability distribution in each row, shape ``(N, C)``. The order of the teachers does not change a bit.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, or a number is not finite.

    Formula: ``median_k softmax(z_k)(c)``, rows divided by their sums.

    Source: coordinate-wise median, Yin et al. 2018 (arXiv:1803.01498), definition 1, on predictions.

    Elsewhere: The program of Roux et al. takes the nearer of the middle two instead of their mean.
    """
    expect_logits(logits)
    return trimmed_mean(logits, trim=(len(logits) - 1) // 2)


def trimmed_mean(logits: Tensor, *, trim: int) -> Tensor:
    """Average each probability without the ``trim`` largest and the ``trim`` smallest; the result is probabilities.

    Rows are divided by their sums afterwards; where all means are zero, the row is uniform. With up to ``trim`` liars
    each mean stays among the honest numbers.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        trim: how many teachers to leave out at each end, for each sample and class; 0 is the plain mean.

    Returns:
        A probability distribution in each row, shape ``(N, C)``. The order of the teachers does not change a bit.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, a number is not finite, or nobody would be left.

    Formula: ``1 / (K - 2 trim) * sum softmax(z_(k))(c)`` over the sorted ``k = trim + 1 .. K - trim``, rows divided by
    their sums.

    Source: coordinate-wise trimmed mean, Yin et al. 2018 (arXiv:1803.01498), definition 2, on predictions.
    """
    expect_logits(logits)
    most = (len(logits) - 1) // 2
    if not isinstance(trim, int) or not 0 <= trim <= most:
        raise ValueError(f"trim: expected an integer from 0 to {most} for {len(logits)} teachers, found {trim!r}.")
    means = torch.empty(logits.shape[1:], dtype=torch.float64, device=logits.device)
    for block, ordered in blocks_in_own_order(logits):
        means[block] = probabilities_of(ordered).sort(dim=0).values[trim : len(logits) - trim].mean(dim=0)
    return _to_distribution(means).to(logits.dtype)


def cronus(logits: Tensor, *, liars: int | None = None, mode: Literal["paper", "code"] = "paper") -> Tensor:
    """Filter out, for each sample, the predictions that spread most, twice, and average the others.

    A prediction's score is the size of its projection, from the mean, on the direction of the largest variance.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        liars: ``f``, how many liars to reckon with, below ``K/2``; None is the most there can be, ``ceil(K/2) - 1``.
        mode: ``"paper"`` leaves out ``ceil(f/2)`` predictions each time. ``"code"`` keeps ``floor((1 - f/2K) * K)`` at
            first, and then all whose score is not above the quantile ``1 - f/2K`` of what is left.

    Returns:
        Probabilities, a distribution in each row, shape ``(N, C)``. The order of the teachers does not change a bit.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, a number is not finite, there can be no such number
            of liars, or there is no such mode.

    Formula: twice: leave out the ``ceil(f/2)`` predictions with the largest ``|(p_k - mean_j p_j) v|``, ``v`` the first
    eigenvector of the covariance; then the mean.

    Source: Cronus, Chang et al. 2019 (arXiv:1912.11279), after Diakonikolas et al. 2017 (arXiv:1703.00893); "code" is
    the program of Roux et al. 2025 (arXiv:2402.12265).

    Elsewhere: The program of Roux et al. leaves out the second time by a quantile (``mode="code"``); they describe it
    as leaving out ``f/2`` twice. It finds ``v`` from the vector of ones, which the covariance of probabilities takes to
    zero but for rounding.
    """
    expect_logits(logits)
    teachers = len(logits)
    most = (teachers + 1) // 2 - 1
    if liars is not None and not (isinstance(liars, int) and 0 <= liars <= most):
        raise ValueError(f"liars: expected an integer from 0 to {most} for {teachers} teachers, found {liars!r}.")
    expect_choice("mode", mode, ("paper", "code"))
    count = most if liars is None else liars
    (ordered,) = in_own_order(logits)
    rows = probabilities_of(ordered).transpose(0, 1).contiguous()
    for keep in _kept_by_cronus(teachers, count, mode):
        rows = _least_spread(rows, keep)
    return _to_distribution(rows.mean(dim=1)).to(logits.dtype)


class Guarded(NamedTuple):
    """What ExpGuard returns.

    Attributes:
        probabilities: the weighted mean of the teachers' probabilities, shape ``(N, C)``.
        scores: the memory for the next round: how far each teacher has been from the centre, summed over all rounds,
            float64, shape ``(K,)``. It belongs into the checkpoint.
        weights: of the teachers in this round, float64, shape ``(K,)``; they sum to 1.
    """

    probabilities: Tensor
    scores: Tensor
    weights: Tensor


def exp_guard(
    logits: Tensor, scores: Tensor, *, eta: float, centre: Callable[[Tensor], Tensor] = geometric_median
) -> Guarded:
    """Average under weights that remember how far each teacher has been from a robust centre; gives probabilities.

    ``s_k <- s_k + mean_x ||p_k(x) - centre(x)||_2`` and ``w_k ~ exp(-eta * s_k)``. A teacher that stays away keeps
    its score, a new one starts from zero. It is weak against clients that are honest on most samples.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``, with at least one sample.
        scores: the memory: zeros at first, then what the last round returned, zero or above, shape ``(K,)``.
        eta: ``eta``, 0 or above: how fast trust is lost. 0 is the mean of probabilities.
        centre: rule that takes all logits and returns probabilities ``(N, C)``; any of this package will do.

    Returns:
        Probabilities, the new memory and the weights. The order of the teachers changes no bit of the probabilities,
        and only the order of the others.

    Raises:
        ValueError: shape or type do not fit, there is no teacher or no sample, a number is not finite, a score is
            negative, ``eta`` is negative, or the centre has another shape.

    Formula: ``sum_k w_k p_k``, ``w_k ~ exp(-eta s_k)``, ``s_k <- s_k + mean_x |p_k(x) - centre(x)|_2``.

    Source: ExpGuard, Roux et al. 2025 (arXiv:2402.12265).

    Elsewhere: The paper and its program multiply weights round by round, which may become zero; the sums of distances
    are the same memory.
    """
    expect_logits(logits)
    if not logits.shape[1]:
        raise ValueError(f"logits: expected at least one sample, found shape {tuple(logits.shape)}.")
    expect_shape("scores", scores, len(logits))
    expect_not_negative("scores", scores)
    expect_within("eta", eta, 0)
    if not callable(centre):
        raise ValueError(f"centre: expected a rule such as ensemble.coordinate_median, found {centre!r}.")
    order = own_order(logits, scores)
    ordered, before = logits.detach()[order].contiguous(), scores.detach().double()[order]
    middle = centre(ordered).double()
    if middle.shape != logits.shape[1:]:
        raise ValueError(f"centre: expected shape {tuple(logits.shape[1:])}, found {tuple(middle.shape)}.")
    rows = probabilities_of(ordered)
    after = before + torch.linalg.vector_norm(rows - middle, dim=2).mean(dim=1)
    weights = torch.softmax(-eta * after, dim=0)
    mean = (rows * weights[:, None, None]).sum(dim=0)
    return Guarded(mean.to(logits.dtype), back_in_place(after, order), back_in_place(weights, order))


def _to_distribution(rows: Tensor) -> Tensor:
    """Divide rows ``(N, C)`` by their sums; a row of zeros becomes uniform."""
    sums = rows.sum(dim=1, keepdim=True)
    return torch.where(sums > 0, rows / torch.where(sums > 0, sums, 1.0), 1 / rows.shape[1])


def _kept_by_cronus(teachers: int, liars: int, mode: str) -> tuple[int, int]:
    """Return how many predictions each of the two filters keeps."""
    if mode == "paper":
        out = -(-liars // 2)
        return max(1, teachers - out), max(1, teachers - 2 * out)
    first = max(1, (2 * teachers - liars) // 2)
    # The quantile of `first` scores that is one of them, or the next above: number ceil(q * (first - 1)) from 0.
    return first, 1 - (-(2 * teachers - liars) * (first - 1) // (2 * teachers))


def _least_spread(rows: Tensor, keep: int) -> Tensor:
    """Keep, of predictions ``(N, K, C)``, the ``keep`` with the smallest scores for each sample."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    if rows.shape[1] < rows.shape[2]:  # an eigenvector of the K x K inner products holds the projections themselves
        sizes, projections = torch.linalg.eigh(centred @ centred.transpose(1, 2))
        scores = projections[:, :, -1].abs() * sizes[:, -1:].clamp(min=0).sqrt()
    else:
        _, directions = torch.linalg.eigh(centred.transpose(1, 2) @ centred)
        scores = (centred @ directions[:, :, -1:]).squeeze(2).abs()
    # The last two are equally far from their mean: such a tie goes to their own order, not to rounding.
    largest = scores.amax(dim=1, keepdim=True)
    steps = (scores / torch.where(largest > 0, largest, 1.0) * SCORE_STEPS).round()
    kept = steps.argsort(dim=1, stable=True)[:, :keep].sort(dim=1).values
    return rows.gather(1, kept[:, :, None].expand(-1, -1, rows.shape[2]))
