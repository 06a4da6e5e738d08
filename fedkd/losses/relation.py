"""Relation-based losses: how the samples of a batch lie to one another, in the student's features as in the teacher's.

Widths may differ unless said otherwise; features of more than one dimension are flattened. All are pure, return a
scalar, send no gradient to the teacher side, and run inside ``torch.func.vmap`` and ``torch.func.grad``. Equal rows and
rows of zeros give finite values and finite gradients.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from fedkd.checks import expect_choice, expect_integer, expect_positive, expect_shape
from fedkd.losses._arguments import alike, rows
from fedkd.numerics import distances, products, root, unit


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the distances of all pairs of samples, each divided by its batch's mean distance.

    The mean distance is that of the pairs which differ; the loss is averaged over all ``N^2`` pairs, a sample with
    itself included, as in the authors' code. Customary weight 25.

    Args:
        student: features of the student, shape ``(N, ...)``.
        teacher: features of the teacher, shape ``(N, ...)``.

    Returns:
        The loss, a number without unit.

    Raises:
        ValueError: a shape does not fit, or a value is not a finite number.

    Formula: ``mean_ij huber(d_ij / mean(d) - d'_ij / mean(d'))`` with ``d_ij = |x_i - x_j|`` of the student, ``d'`` of
    the teacher.

    Source: Park et al. 2019 (RKD, arXiv:1904.05068), eq. 5 to 8.

    Elsewhere: Weights beside the angles: 25 and 50 in RepDistiller and mdistiller, 1 and 2 in torchdistill, 0.5 and 0.5
    in KD_Lib. Public code has an eps in the distance, 1e-12 or 1e-10.
    """
    student, teacher = rows(student, teacher)
    return smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles of all triples of samples.

    Averaged over all ``N^3`` triples, those with equal members included (their cosine is 0 or 1 on both sides), as in
    the authors' code. Needs memory for ``N^2 d + N^3`` numbers. Customary weight 50.

    Args:
        student: features of the student, shape ``(N, ...)``.
        teacher: features of the teacher, shape ``(N, ...)``.

    Returns:
        The loss, a number without unit.

    Raises:
        ValueError: a shape does not fit, or a value is not a finite number.

    Formula: ``mean_ijk huber(cos(j, i, k) - cos'(j, i, k))`` with ``cos(j, i, k)`` between ``x_j - x_i`` and
    ``x_k - x_i``.

    Source: Park et al. 2019 (RKD, arXiv:1904.05068), eq. 9 and 10.

    Elsewhere: As of :func:`rkd_distance`.
    """
    student, teacher = rows(student, teacher)
    return smooth_l1_loss(_cosines_of_angles(student), _cosines_of_angles(teacher))


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the matrices of inner products, each row scaled to length one, averaged over all pairs.

    Customary weight 3000.

    Args:
        student: features of the student, shape ``(N, ...)``.
        teacher: features of the teacher, shape ``(N, ...)``.

    Returns:
        The loss, a number without unit; at most ``4 / N``.

    Raises:
        ValueError: a shape does not fit, or a value is not a finite number.

    Formula: ``1 / N^2 * sum_ij (g_ij - g'_ij)^2`` with rows ``g_i = G_i / |G_i|_2`` of ``G = X X^T``.

    Source: Tung & Mori 2019 (arXiv:1907.09682), eq. 2 to 4.

    Elsewhere: RepDistiller and mdistiller agree; torchdistill divides each row by its L1 norm: another loss.
    """
    student, teacher = (unit(products(entries, entries)) for entries in rows(student, teacher))
    return (student - teacher).square().mean()


def correlation_congruence(
    student: Tensor,
    teacher: Tensor,
    *,
    variant: Literal["kernel", "delta"] = "kernel",
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    """Difference of correlations between samples.

    Args:
        student: features of the student, shape ``(N, ...)``.
        teacher: features of the teacher, shape ``(N, ...)``; for ``"delta"`` of the student's shape.
        variant: ``"kernel"``, the paper's: squared difference of the kernel matrices of features scaled to length one,
            averaged over all pairs; ``"delta"``, what the authors gave to the writers of public code: the products of
            the absolute differences of one sample and of the next in the batch, summed over entries, averaged over
            the ``N - 1`` neighbours. It depends on the order of the batch (customary weight 0.02).
        gamma: width of the Gaussian kernel, above 0; for ``"kernel"`` only.
        order: highest power in the kernel's Taylor expansion, 1 or more; for ``"kernel"`` only.

    Returns:
        The loss: without unit for ``"kernel"``, in squared units of the features for ``"delta"``. ``"delta"`` of a
        single sample is 0.

    Raises:
        ValueError: a shape does not fit, a value is not a finite number, or a setting is out of range.

    Formula: kernel: ``1 / N^2 * sum_ij (k(x_i, x_j) - k(x'_i, x'_j))^2`` with
    ``k(x, y) = sum_(p <= order) exp(-2 gamma) (2 gamma x y)^p / p!`` of unit vectors; delta:
    ``1 / (N - 1) * sum_n |D_n| |D_(n+1)|`` with ``D = student - teacher``.

    Source: Peng et al. 2019 (arXiv:1904.01802), the Gaussian kernel by its Taylor series.

    Elsewhere: RepDistiller has "delta", after two linear embeddings to 128 entries. torchdistill takes the Frobenius
    norm of the difference, not its square, over ``N^2``.
    """
    expect_choice("variant", variant, ("kernel", "delta"))
    expect_positive("gamma", gamma)
    expect_integer("order", order, 1)
    if variant == "delta":
        student, teacher = alike(student, teacher)
        difference = (student - teacher).abs().flatten(1)
        return (difference[:-1] * difference[1:]).sum() / max(1, len(difference) - 1)
    student, teacher = (_taylor_kernel(unit(entries), gamma, order) for entries in rows(student, teacher))
    return (student - teacher).square().mean()


def pkt(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Divergence between the probabilities with which samples would pick each other as neighbours.

    A sample's probabilities are its cosines with all samples, itself included, mapped to [0, 1] and divided by their
    sum. Averaged over all ``N^2`` pairs, as in the authors' code (the paper sums). Customary weight 30000.

    Args:
        student: features of the student, shape ``(N, ...)``.
        teacher: features of the teacher, shape ``(N, ...)``.
        eps: added to each norm and to each probability in the logarithm, above 0.

    Returns:
        The loss in nats per pair, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not a finite number, or ``eps`` is not above 0.

    Formula: ``1 / N^2 * sum_ij q_ij log((q_ij + eps) / (p_ij + eps))`` with ``p_ij ~ (cos(x_i, x_j) + 1) / 2`` in rows
    that sum to 1, ``q`` of the teacher.

    Source: Passalis & Tefas 2018 (arXiv:1803.10837), with the cosine kernel.

    Elsewhere: The paper sums over pairs. RepDistiller, mdistiller and torchdistill agree, but turn NaN in the caller's
    tensor into zeros.
    """
    expect_positive("eps", eps)
    student, teacher = (_neighbour_probabilities(entries, eps) for entries in rows(student, teacher))
    return (teacher * ((teacher + eps).log() - (student + eps).log())).mean()


def triplet(
    anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float = 0.2, normalise: bool = True
) -> Tensor:
    """Hinge that draws the student's features to the teacher's of the same sample and away from another class's.

    ``max(0, |a - p|^2 - |a - n|^2 + margin)``, averaged over the batch. Which teacher row is the negative of which
    sample is the caller's choice: :func:`hardest_negatives` is one rule.

    Args:
        anchor: features of the student, shape ``(N, d)``.
        positive: features of the teacher for the same samples, shape ``(N, d)``; constant.
        negative: features of the teacher for samples of other classes, shape ``(N, d)``; constant.
        margin: by how much the negative shall be further away, in squared units of the features, above 0.
        normalise: whether all three are first scaled to length one.

    Returns:
        The loss in squared units of the (scaled) features, a scalar; ``margin`` if positive and negative coincide.

    Raises:
        ValueError: a shape does not fit, a value is not a finite number, or the margin is not above 0.

    Formula: ``1 / N * sum_n max(0, |a - p|^2 - |a - n|^2 + margin)``.

    Source: Schroff et al. 2015 (arXiv:1503.03832), section 3.1, averaged; between student and teacher as in Oki et al.
    2020 (arXiv:2004.08116).

    Elsewhere: pytorch-metric-learning agrees if told to take squared distances and the mean over all triplets.
    """
    expect_positive("margin", margin)
    expect_shape("anchor", anchor, "N", "d")
    near = alike(anchor, positive, names=("anchor", "positive"))
    far = alike(anchor, negative, names=("anchor", "negative"))
    closeness, distance = (_squared_distances(*pair, normalise=normalise) for pair in (near, far))
    return (closeness - distance + margin).clamp(min=0).mean()


def hardest_negatives(anchor: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
    """Pick for each sample the teacher's features, of another class, that are nearest to the student's in angle.

    Args:
        anchor: features of the student, shape ``(N, d)``.
        candidates: features of the teacher for the same samples, shape ``(N, d)``.
        labels: class of each sample, shape ``(N,)``.

    Returns:
        Rows of ``candidates``, detached, shape ``(N, d)``. Where all samples are of one class, a sample's own row, so
        that its triplet loss is the constant margin, without gradient.

    Raises:
        ValueError: a shape does not fit, or a value is not a finite number.

    Formula: ``argmax_(j: y_j != y_i) cos(anchor_i, candidates_j)``.

    Source: hard negatives of a batch, Hermans et al. 2017 (arXiv:1703.07737), with the cosine.

    Elsewhere: The code of RKD has this rule by Euclidean distance, within one network, beside random, semi-hard and
    distance-weighted negatives.
    """
    expect_shape("anchor", anchor, "N", "d")
    anchor, candidates = alike(anchor, candidates, names=("anchor", "candidates"))
    expect_shape("labels", labels, len(anchor))
    cosines = products(unit(anchor.detach()), unit(candidates))
    same = labels[:, None] == labels[None, :]
    own = torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)
    rank = torch.where(same, torch.where(own, -3.0, -4.0), cosines)  # below every cosine; its own row before the others
    return candidates[rank.argmax(dim=1)]


def _relative_distances(features: Tensor) -> Tensor:
    """Return the distances ``(N, N)`` of rows ``(N, d)``, divided by the mean of those that are not zero."""
    lengths = distances(features)
    mean = lengths.sum() / (lengths > 0).sum().clamp(min=1)
    return lengths / torch.where(mean > 0, mean, 1.0)


def _cosines_of_angles(features: Tensor) -> Tensor:
    """Return ``cos(j, i, k)`` at ``[i, j, k]``, shape ``(N, N, N)``: the angle at ``i`` between ``j`` and ``k``."""
    directions = unit(features[None, :, :] - features[:, None, :])
    return products(directions, directions)


def _taylor_kernel(features: Tensor, gamma: float, order: int) -> Tensor:
    """Return the Gaussian kernel ``exp(-gamma |x - y|^2)`` of rows of length one, expanded in their inner product."""
    cosines = products(features, features)
    factors = [math.exp(-2 * gamma) * (2 * gamma) ** power / math.factorial(power) for power in range(order + 1)]
    return torch.stack([factor * cosines**power for power, factor in enumerate(factors)]).sum(dim=0)


def _neighbour_probabilities(features: Tensor, eps: float) -> Tensor:
    norms = root(features.square().sum(dim=1, keepdim=True))
    scaled = features / (norms + eps)
    similarities = (products(scaled, scaled) + 1) / 2
    return similarities / similarities.sum(dim=1, keepdim=True)


def _squared_distances(first: Tensor, second: Tensor, *, normalise: bool) -> Tensor:
    if normalise:
        first, second = unit(first), unit(second)
    return (first - second).square().sum(dim=1)
