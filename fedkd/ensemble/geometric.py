"""The geometric median of the teachers' predictions."""

from typing import NamedTuple

import torch
from torch import Tensor

from fedkd.checks import expect_integer, expect_within
from fedkd.ensemble._checks import blocks_in_own_order, expect_logits, probabilities_of

_CHECK_EVERY = 20  # iterations between two looks whether a prediction is itself the median
_CLOSE = 1e-6  # distance from a prediction below which it may be the median itself
_NEWTON_AFTER = 40  # iterations, which few samples need
_LENGTHS = 20  # how often the way that Newton's method would go is halved
_ROUNDING = 1e-13  # a sum of distances that is larger by less may be so by rounding alone


def geometric_median(logits: Tensor, *, iterations: int = 100, tolerance: float = 1e-13) -> Tensor:
    """Find, for each sample, the point with the smallest sum of distances to all predictions; gives probabilities.

    With fewer than half of the teachers lying, however they lie, it stays near the honest ones: within
    ``2 (K - f) / (K - 2f)`` times the distance of the farthest of these, for ``f`` liars. If more than half of the
    teachers agree exactly, it is what they say. With two classes and an even number of teachers several points are
    equally good, and it is the one that is reached from the mean.

    Weiszfeld's iteration from the mean, extrapolated from two steps (Anderson's method) as long as that lowers the sum
    of distances, and Newton's method for the few samples that are not done after 40 iterations. A prediction that is
    itself the median is found by the condition of Vardi and Zhang, since the iteration would only creep there.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        iterations: at most so many, 1 or more; 20 are usual.
        tolerance: a sample is done when no probability would move farther, 0 or above.

    Returns:
        A probability distribution in each row, shape ``(N, C)``. The order of the teachers does not change a bit.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, a number is not finite, or a setting is out of range.

    Formula: ``argmin_x sum_k |x - softmax(z_k)|_2``.

    Source: Weiszfeld 1937; Vardi & Zhang 2000 (PNAS 97), equation 2.6; as a rule for predictions Roux et al. 2025
    (arXiv:2402.12265).

    Elsewhere: The program of Roux et al. stops after 100 iterations, or where the sum changes by less than 1e-8 of
    itself.
    """
    expect_logits(logits)
    expect_integer("iterations", iterations, 1)
    expect_within("tolerance", tolerance, 0)
    medians = torch.empty(logits.shape[1:], dtype=torch.float64, device=logits.device)
    for block, ordered in blocks_in_own_order(logits):
        medians[block] = _medians(probabilities_of(ordered).transpose(0, 1).contiguous(), iterations, tolerance)
    medians.clamp_(min=0)  # by rounding, or by the last of Newton's steps, it may be outside
    return (medians / medians.sum(dim=1, keepdim=True)).to(logits.dtype)


class _Search(NamedTuple):
    """Where the search for the medians of ``N`` samples stands.

    Attributes:
        at: where to look next, ``(N, 1, C)``.
        best: where the best plain step so far has led, ``(N, 1, C)``.
        lowest: sum of distances where that step began, ``(N, 1, 1)``.
        target: where the last plain step led, ``(N, 1, C)``.
        step: the last plain step, ``(N, 1, C)``.
        fresh: whether there is no step before this one to extrapolate from, ``(N, 1, 1)``.
        escaped: whether the search has left a prediction behind that was close, but not the median, ``(N,)``.
    """

    at: Tensor
    best: Tensor
    lowest: Tensor
    target: Tensor
    step: Tensor
    fresh: Tensor
    escaped: Tensor


def _medians(points: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Geometric medians of ``points`` ``(N, K, C)``, shape ``(N, C)``."""
    result = torch.empty_like(points[:, 0])
    rows = torch.arange(len(points), device=points.device)  # the samples that are still looked at
    mean = points.mean(dim=1, keepdim=True)
    infinite, no = torch.full_like(mean[:, :, :1], float("inf")), torch.zeros_like(rows, dtype=torch.bool)
    search = _Search(mean, mean, infinite, mean, torch.zeros_like(mean), ~no[:, None, None], no)
    for iteration in range(1, iterations + 1):
        search, done, close = _advanced(points, search, tolerance, by_newton=iteration > _NEWTON_AFTER)
        doubtful = (close & done & ~search.escaped) | (not iteration % _CHECK_EVERY)
        if doubtful.any():
            search, found = _settled(points, search, doubtful, close)
            done = (done & ~(doubtful & close)) | found
        if iteration <= _NEWTON_AFTER:  # short steps mean little that close to a prediction
            done &= ~(close & search.escaped)
        if done.any() or iteration == iterations:
            result[rows] = search.best[:, 0]
            left = ~done
            if not left.any():
                break
            if 2 * int(left.sum()) <= len(left):
                rows, points = rows[left], points[left]
                search = _Search(*(each[left] for each in search))
    return result


def _advanced(points: Tensor, search: _Search, tolerance: float, *, by_newton: bool) -> tuple[_Search, Tensor, Tensor]:
    """Take one step; return too which samples are done, and which are close to a prediction, both ``(N,)``."""
    target, total, nearest = _weiszfeld(points, search.at)
    step = target - search.at
    size = step.abs().amax(dim=(1, 2))
    if by_newton:
        target, size = _newton(points, search.at, target)
    worse = total > search.lowest * (1 + _ROUNDING)  # the extrapolation went too far: on from the best plain step
    after = _Search(
        at=torch.where(worse, search.best, target if by_newton else _extrapolated(target, step, search)),
        best=torch.where(worse, search.best, target),
        lowest=torch.where(worse, search.lowest, total),
        target=target,
        step=step,
        fresh=worse,
        escaped=search.escaped,
    )
    done = ~worse.flatten() & (size <= tolerance)
    return after, done, nearest < _CLOSE


def _settled(points: Tensor, search: _Search, doubtful: Tensor, close: Tensor) -> tuple[_Search, Tensor]:
    """End the search at the nearest prediction where that is the median, and lead it away, once, where it is close.

    So close to a prediction the iteration only creeps, whether the median is there or not.

    Returns:
        The search, and for which samples the prediction is the median, ``(N,)``.
    """
    looked_at = points[doubtful]
    nearest = _distances(search.best[doubtful], looked_at).argmin(dim=2, keepdim=True)
    point = looked_at.gather(1, nearest.expand(-1, -1, points.shape[2]))
    led, _, _ = _weiszfeld(looked_at, point)
    found, away = torch.zeros_like(doubtful), search.at.clone()
    found[doubtful], away[doubtful] = (led == point).all(dim=2).flatten(), led
    left = doubtful & close & ~search.escaped & ~found
    moved = (found | left)[:, None, None]
    return (
        search._replace(
            at=torch.where(moved, away, search.at),
            best=torch.where(moved, away, search.best),
            lowest=torch.where(moved, float("inf"), search.lowest),
            fresh=search.fresh | moved,
            escaped=search.escaped | left,
        ),
        found,
    )


def _weiszfeld(points: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where Weiszfeld's step leads from ``at`` ``(N, 1, C)``.

    Also the sum of distances there, ``(N, 1, 1)``, and the smallest one, ``(N,)``. A point that is itself the median
    is not left: the pull of all others is no stronger than the number of points that lie there (Vardi & Zhang).
    """
    distances = _distances(at, points)
    total, nearest = distances.sum(dim=2, keepdim=True), distances.amin(dim=(1, 2))
    if (nearest > 0).all():
        pull = distances.reciprocal_()
        return pull @ points / pull.sum(dim=2, keepdim=True), total, nearest
    here = distances == 0
    pull = torch.where(here, 0.0, distances.reciprocal())
    strength = pull.sum(dim=2, keepdim=True)
    # From the differences, not from their sum: with a close point among them that would cancel digits.
    force = pull @ (points - at)
    size = torch.linalg.vector_norm(force, dim=2, keepdim=True)
    freedom = (1 - here.sum(dim=2, keepdim=True) / torch.where(size > 0, size, 1.0)).clamp(min=0)
    step = torch.where(size > 0, freedom, 0.0) * force / torch.where(strength > 0, strength, 1.0)
    return at + step, total, nearest


def _extrapolated(target: Tensor, step: Tensor, search: _Search) -> Tensor:
    """Return the combination of the last two targets whose step, if steps were linear, would be the shortest."""
    change = step - search.step
    size = change.square().sum(dim=2, keepdim=True)
    share = (step * change).sum(dim=2, keepdim=True) / torch.where(size > 0, size, 1.0)
    return target - torch.where(search.fresh | (size == 0), 0.0, share) * (target - search.target)


def _newton(points: Tensor, at: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best point on the way that Newton's method would go, or ``target`` if that is better.

    Also the largest change that the whole way would make, ``(N,)``. It is for the few samples on whose long flat
    valleys Weiszfeld's steps are too short.
    """
    away = points - at
    pull = torch.linalg.vector_norm(away, dim=2, keepdim=True).clamp(min=1e-300).reciprocal()
    total = pull.sum(dim=1, keepdim=True)
    along = away * pull.pow(1.5)
    plain = torch.eye(points.shape[2], dtype=points.dtype, device=points.device)
    bend = plain * (1 + _ROUNDING) - along.transpose(1, 2) @ along / total  # on a line it would be singular
    way = torch.linalg.solve(bend, ((away * pull).sum(dim=1) / total.squeeze(1))[:, :, None]).transpose(1, 2)
    lengths = 0.5 ** torch.arange(_LENGTHS, dtype=points.dtype, device=points.device)
    stops = torch.cat([at + lengths[:, None] * way, target], dim=1)
    sums = _distances(stops, points).sum(dim=2)
    good = sums <= sums.amin(dim=1, keepdim=True) * (1 + _ROUNDING / 10)
    first = good.int().argmax(dim=1)  # the longest among those that are as good as the best
    best = stops.gather(1, first[:, None, None].expand(-1, 1, points.shape[2]))
    return best, way.abs().amax(dim=(1, 2))


def _distances(at: Tensor, points: Tensor) -> Tensor:
    """Distances from ``at`` ``(N, M, C)`` to ``points`` ``(N, K, C)``, shape ``(N, M, K)``."""
    return torch.cdist(at, points, compute_mode="donot_use_mm_for_euclid_dist")  # the other mode cancels digits
