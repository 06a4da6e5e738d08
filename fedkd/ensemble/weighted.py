"""Some teachers count more than others: weights per teacher or per sample, and the means under them.

A function ``..._weights`` says how much each teacher counts; its weights are zero or above and sum to 1 over the
teachers, and teachers that know equally much count equally. :func:`weighted_probabilities` and
:func:`weighted_logits` take any weights, so that what a paper averages and how it weighs can be combined freely. The
other functions are the combinations that papers use.
"""

from typing import Literal

import torch
from torch import Tensor

from fedkd.checks import expect_choice, expect_labels, expect_shape
from fedkd.ensemble._checks import (
    back_in_place,
    expect_logits,
    expect_not_negative,
    expect_weights,
    in_own_order,
    own_order,
    probabilities_of,
)

# --- means under given weights


def weighted_probabilities(logits: Tensor, weights: Tensor) -> Tensor:
    """Average the teachers' probabilities under weights; the result is probabilities.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        weights: zero or above, one for each teacher, shape ``(K,)``, or for each of its samples, shape ``(K, N)``;
            they are divided by their sum over the teachers. Numbers of samples will do.

    Returns:
        A probability distribution in each row, shape ``(N, C)``. The order of the teachers does not change a bit.

    Raises:
        ValueError: shape or type do not fit, a number is not finite, or the weights of a sample cannot be weights.

    Source: weighted by numbers of samples as in FedAvg, McMahan et al. 2017 (arXiv:1602.05629), on predictions.
    """
    expect_logits(logits)
    expect_weights(weights, logits)
    ordered, shares = in_own_order(logits, weights)
    return _weighted_sum(probabilities_of(ordered), _normalised(shares)).to(logits.dtype)


def weighted_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """Average the teachers' logits under weights; the result is logits.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        weights: shape ``(K,)`` or ``(K, N)``, as of :func:`weighted_probabilities`.

    Returns:
        Logits, shape ``(N, C)``. The order of the teachers does not change a bit.

    Raises:
        ValueError: shape or type do not fit, a number is not finite, or the weights of a sample cannot be weights.

    Source: with a certainty score for each sample, the ensemble of FedAUX, Sattler et al. 2021 (arXiv:2102.02514).
    """
    expect_logits(logits)
    expect_weights(weights, logits)
    ordered, shares = in_own_order(logits, weights)
    return _weighted_sum(ordered.double(), _normalised(shares)).to(logits.dtype)


# --- how much a teacher counts


def entropy_weights(logits: Tensor) -> Tensor:
    """Weigh each prediction by the inverse of its entropy, ``w_k ~ 1 / H(p_k)``.

    Teachers without any entropy share a sample among themselves.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.

    Returns:
        Weights, float64, shape ``(K, N)``, that sum to 1 over the teachers.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, or a number is not finite.

    Source: FedGEMS, Cheng et al. 2021 (arXiv:2110.11027), who apply it to the clients that are right.
    """
    expect_logits(logits)
    order = own_order(logits)
    entropies = _entropies(logits[order])
    least = entropies.amin(dim=0)
    # In units of the least entropy no inverse can overflow; 0 / 0 is a teacher that is certain.
    shares = torch.where(entropies == least, 1.0, least / entropies)
    return back_in_place(_normalised(shares), order)


def confidence_weights(logits: Tensor) -> Tensor:
    """Weigh each prediction by its largest probability, ``w_k ~ max_c p_k(c)``.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.

    Returns:
        Weights, float64, shape ``(K, N)``, that sum to 1 over the teachers; none is more than ``C`` times another.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, or a number is not finite.

    Source: confidence as in Hendrycks & Gimpel 2017 (arXiv:1610.02136), made to sum to 1.
    """
    expect_logits(logits)
    order = own_order(logits)
    return back_in_place(_normalised(probabilities_of(logits.detach()[order]).amax(dim=2)), order)


def variance_weights(logits: Tensor, *, of: Literal["logits", "probabilities"] = "logits") -> Tensor:
    """Weigh each prediction by its variance over the classes, ``w_k ~ Var_c(z_k(c))``.

    Where no teacher's prediction varies, all count the same.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        of: whether ``z`` are the logits, whose scale then counts, or the probabilities.

    Returns:
        Weights, float64, shape ``(K, N)``, that sum to 1 over the teachers.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, a number is not finite, or there is no such choice.

    Source: the weighted consensus of Fed-ET, Cho et al. 2022 (arXiv:2204.12703).
    """
    expect_logits(logits)
    expect_choice("of", of, ("logits", "probabilities"))
    order = own_order(logits)
    ordered = logits.detach()[order].contiguous()
    rows = ordered.double() if of == "logits" else probabilities_of(ordered)
    variances = (rows - rows.mean(dim=2, keepdim=True)).square().mean(dim=2)
    # The mean of equal numbers may be one rounding away from them, and then they would seem to vary.
    variances = torch.where(rows.amax(dim=2) == rows.amin(dim=2), 0.0, variances)
    return back_in_place(_normalised(torch.where((variances > 0).any(dim=0), variances, 1.0)), order)


def class_count_weights(counts: Tensor) -> Tensor:
    """Weigh each teacher, for each class, by its number of samples of it, ``w_k(c) = n_k(c) / sum_j n_j(c)``.

    For a class that nobody holds, all teachers count the same.

    Args:
        counts: numbers of samples, zero or above, shape ``(K, C)``.

    Returns:
        Weights, float64, shape ``(K, C)``, that sum to 1 over the teachers.

    Raises:
        ValueError: the shape does not fit, or a count is negative or not finite.

    Source: label weights of FedGen, Zhu et al. 2021 (arXiv:2105.10056), and of FedFTG, Zhang et al. 2022
    (arXiv:2203.09249).
    """
    expect_shape("counts", counts, "K", "C")
    expect_not_negative("counts", counts)
    order = own_order(counts[:, None])
    shares = counts.detach().double()[order]
    return back_in_place(_normalised(torch.where((shares > 0).any(dim=0), shares, 1.0)), order)


def ebkd_weights(logits: Tensor) -> Tensor:
    """Weigh each prediction by the others' share of all entropy, ``w_k = (1 - H_k / sum_j H_j) / (K - 1)``.

    The authors' program leaves out the ``K - 1``, so that its weights sum to that, and then divides by ``K``: a
    factor that depends on the number of teachers. A lone teacher has weight 1, and where no prediction has any
    entropy all count the same.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.

    Returns:
        Weights, float64, shape ``(K, N)``, that sum to 1 over the teachers; none is above ``1 / (K - 1)``.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, or a number is not finite.

    Source: EBKD, Kwon et al. 2020 (adaptive knowledge distillation based on entropy), in the form that the program
    of CA-MKD compares with (Zhang et al. 2022, arXiv:2201.00007).
    """
    expect_logits(logits)
    order = own_order(logits)
    entropies = _entropies(logits[order])
    total = entropies.sum(dim=0)
    return back_in_place(_shares_of_the_others(entropies / torch.where(total > 0, total, 1.0)), order)


def ca_mkd_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """Weigh each prediction by how well it fits the label, ``w_k = (1 - softmax_k(CE_k)) / (K - 1)``.

    The weights sum to 1 as in the paper; the authors' program divides the weighted sum by ``K`` once more. A lone
    teacher has weight 1, where the formula divides by zero.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        labels: class of each sample, int64, shape ``(N,)``; ``CE_k`` is its cross-entropy in nats.

    Returns:
        Weights, float64, shape ``(K, N)``, that sum to 1 over the teachers; none is above ``1 / (K - 1)``.

    Raises:
        ValueError: shape or type do not fit, there is no teacher or no such class, or a number is not finite.

    Source: CA-MKD, Zhang et al. 2022 (arXiv:2201.00007), section 2.
    """
    expect_logits(logits)
    expect_labels("labels", labels, *logits.shape[1:])
    order = own_order(logits)
    log_probabilities = torch.log_softmax(logits.detach()[order].double(), dim=2)
    losses = -log_probabilities.gather(2, labels.expand(len(order), -1)[:, :, None]).squeeze(2)
    return back_in_place(_shares_of_the_others(torch.softmax(losses, dim=0)), order)


# --- the combinations that papers use


def by_entropy(logits: Tensor) -> Tensor:
    """Average probabilities, weighted by inverse entropy (:func:`entropy_weights`); the result is probabilities."""
    return weighted_probabilities(logits, entropy_weights(logits))


def by_confidence(logits: Tensor) -> Tensor:
    """Average probabilities, weighted by the largest of each row (:func:`confidence_weights`); gives probabilities."""
    return weighted_probabilities(logits, confidence_weights(logits))


def by_variance(logits: Tensor, *, of: Literal["logits", "probabilities"] = "logits") -> Tensor:
    """Average probabilities, weighted by variance as in Fed-ET (:func:`variance_weights`); gives probabilities."""
    return weighted_probabilities(logits, variance_weights(logits, of=of))


def ebkd(logits: Tensor) -> Tensor:
    """Average probabilities, weighted as in EBKD (:func:`ebkd_weights`); the result is probabilities.

    A student's cross-entropy with it is the weighted sum of its cross-entropies with the teachers.
    """
    return weighted_probabilities(logits, ebkd_weights(logits))


def ca_mkd(logits: Tensor, labels: Tensor) -> Tensor:
    """Average probabilities, weighted as in CA-MKD (:func:`ca_mkd_weights`); the result is probabilities.

    A student's cross-entropy with it is the weighted sum of its cross-entropies with the teachers.
    """
    return weighted_probabilities(logits, ca_mkd_weights(logits, labels))


def by_class_counts(logits: Tensor, counts: Tensor) -> Tensor:
    """Average each class's probability over the teachers weighted by what they hold of it; gives probabilities.

    A teacher that has never seen a class says little about it. Rows are divided by their sums afterwards.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        counts: numbers of samples of each class behind each teacher, zero or above, shape ``(K, C)``.

    Returns:
        A probability distribution in each row, shape ``(N, C)``. The order of the teachers does not change a bit.

    Raises:
        ValueError: a shape or type does not fit, or a number is not finite or a count is negative.

    Source: the weights of FedGen, Zhu et al. 2021 (arXiv:2105.10056), per output class instead of per label.
    """
    _expect_counts(logits, counts)
    weights = class_count_weights(counts)
    ordered, shares = in_own_order(logits, weights)
    mean = (probabilities_of(ordered) * shares[:, None, :]).sum(dim=0)
    return (mean / mean.sum(dim=1, keepdim=True)).to(logits.dtype)


def by_label_counts(logits: Tensor, counts: Tensor, labels: Tensor) -> Tensor:
    """Average logits over the teachers, weighted by what they hold of each sample's label; the result is logits.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        counts: numbers of samples of each class behind each teacher, zero or above, shape ``(K, C)``.
        labels: class of each sample, int64, shape ``(N,)``: known where the samples were generated for it.

    Returns:
        Logits, shape ``(N, C)``. The order of the teachers does not change a bit.

    Raises:
        ValueError: a shape or type does not fit, there is no such class, or a number is not finite or negative.

    Source: the server's loss of FedGen, Zhu et al. 2021 (arXiv:2105.10056), and of FedFTG, Zhang et al. 2022
    (arXiv:2203.09249).
    """
    _expect_counts(logits, counts)
    expect_labels("labels", labels, *logits.shape[1:])
    return weighted_logits(logits, class_count_weights(counts)[:, labels])


def _expect_counts(logits: Tensor, counts: Tensor) -> None:
    """Refuse counts that are not ``(K, C)`` for logits ``(K, N, C)``."""
    expect_logits(logits)
    expect_shape("counts", counts, logits.shape[0], logits.shape[2])


def _entropies(logits: Tensor) -> Tensor:
    """Entropy of each prediction in nats, float64, shape ``(K, N)``."""
    entropies: Tensor = torch.special.entr(probabilities_of(logits.detach())).sum(dim=2)
    return entropies


def _normalised(shares: Tensor) -> Tensor:
    """Divide by the sum over the first dimension, in float64, after the largest, so that no sum overflows."""
    scaled = shares.double() / shares.double().amax(dim=0)
    return scaled / scaled.sum(dim=0)


def _shares_of_the_others(shares: Tensor) -> Tensor:
    """Return ``(1 - share) / (K - 1)``, which sums to 1 as the shares do; 1 for a lone teacher."""
    teachers = len(shares)
    if teachers == 1:
        return torch.ones_like(shares)
    rest = 1 - shares
    return rest / rest.sum(dim=0)  # K - 1, or K where nobody has a share


def _weighted_sum(rows: Tensor, weights: Tensor) -> Tensor:
    """Sum rows ``(K, N, C)`` under weights ``(K,)`` or ``(K, N)``."""
    per_sample = weights if weights.ndim == 2 else weights[:, None]  # noqa: PLR2004 - (K, N)
    total: Tensor = (rows * per_sample[:, :, None]).sum(dim=0)
    return total
