"""Every teacher counts the same: means of logits or probabilities, their sharpened forms, and the vote."""

from typing import Literal

import torch
from torch import Tensor

from fedkd.checks import expect_choice, expect_positive
from fedkd.ensemble._checks import (
    blocks_in_own_order,
    expect_logits,
    expect_probabilities,
    in_own_order,
    own_order,
    probabilities_of,
)

_EPSILON = 1e-7  # added to the standard deviation by the authors' code of logit standardisation


def mean_logits(logits: Tensor) -> Tensor:
    """Average the teachers' logits; the result is logits.

    Large logits speak louder than small ones, so that one teacher can outvote all others: never use it on clients
    that may lie.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.

    Returns:
        Their mean, logits, shape ``(N, C)``. The order of the teachers does not change a bit.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, or a number is not finite.

    Source: consensus of FedMD, Li & Wang 2019 (arXiv:1910.03581), algorithm 1; ``avg_logits`` of FedDF, Lin et al.
    2020 (arXiv:2006.07242).
    """
    expect_logits(logits)
    teachers = logits.detach().reshape(len(logits), -1).unbind()
    total = torch.zeros_like(teachers[0], dtype=torch.float64)
    for teacher in own_order(logits):  # one after the other: a float64 copy of all would take ten times as long
        total.add_(teachers[teacher])
    return (total / len(teachers)).to(logits.dtype).reshape(logits.shape[1:])


def mean_probabilities(logits: Tensor) -> Tensor:
    """Average the teachers' probabilities; the result is probabilities.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.

    Returns:
        The mean of their softmax, a probability distribution in each row, shape ``(N, C)``. The order of the teachers
        does not change a bit.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, or a number is not finite.

    Source: simple aggregation (SA) in DS-FL, Itahara et al. 2021 (arXiv:2008.06180).
    """
    return _mean_probabilities(logits).to(logits.dtype)


def mean_standardised_logits(logits: Tensor, *, mode: Literal["paper", "code"] = "paper") -> Tensor:
    """Average the teachers' standardised logits; the result is logits.

    Each row of each teacher is centred and divided by its standard deviation over the classes, so that architectures
    with small logits and with large ones count the same: a row ``a * z + b`` with ``a > 0`` counts as ``z`` does. The
    softmax of standardised logits is flat: its largest probability is below ``1 / (1 + (C - 1) exp(-C /
    sqrt(C - 1)))``, 0.76 for 10 classes.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        mode: ``"paper"`` divides by the root of the mean square over ``C``, and makes a constant row zero; ``"code"``
            divides by the unbiased standard deviation (over ``C - 1``) plus 1e-7, as the authors' program does.

    Returns:
        The mean of the standardised rows, logits that sum to 0 in each row, shape ``(N, C)``. The order of the
        teachers does not change a bit.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, a number is not finite, or there is no such mode.

    Source: logit standardisation, Sun et al. 2024 (arXiv:2403.01427), as a rule of aggregation.
    """
    expect_logits(logits)
    expect_choice("mode", mode, ("paper", "code"))
    (ordered,) = in_own_order(logits)
    rows = ordered.double()
    centred = rows - rows.mean(dim=2, keepdim=True)
    constant = rows.amax(dim=2, keepdim=True) == rows.amin(dim=2, keepdim=True)
    centred = torch.where(constant, 0.0, centred)  # the mean of equal numbers may be one rounding away from them
    squares = centred.square().sum(dim=2, keepdim=True)
    classes = logits.shape[2]
    if mode == "code":
        spread = (squares / max(1, classes - 1)).sqrt() + _EPSILON
    else:
        spread = torch.where(constant, 1.0, (squares / classes).sqrt())
    return (centred / spread).mean(dim=0).to(logits.dtype)


def era(logits: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Entropy-reduction aggregation: the softmax of the mean *probabilities* divided by a temperature.

    It sharpens only while ``T < 1/C``: near a uniform row it multiplies differences by ``1/(T*C)``, so the default
    is neutral for 10 classes and flattens for more.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        temperature: ``T``, above 0; probabilities are divided by it.

    Returns:
        Probabilities, a distribution in each row, shape ``(N, C)``. The order of the teachers does not change a bit.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, a number is not finite, or the temperature is not a
            finite number above 0.

    Source: ERA in DS-FL, Itahara et al. 2021 (arXiv:2008.06180).
    """
    return reduce_entropy(_mean_probabilities(logits), temperature=temperature).to(logits.dtype)


def enhanced_era(logits: Tensor, *, exponent: float = 2.0) -> Tensor:
    """Enhanced entropy-reduction aggregation: the mean probabilities to a power, made to sum to 1 again.

    An exponent above 1 never raises the entropy of a row, whatever the number of classes; 1 is the plain mean.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        exponent: ``beta``, above 0.

    Returns:
        Probabilities, a distribution in each row, shape ``(N, C)``. The order of the teachers does not change a bit.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, a number is not finite, or the exponent is not a
            finite number above 0.

    Source: Enhanced ERA in SCARLET, Azuma et al. 2026 (arXiv:2504.19602); 2 is the default of the authors' code.
    """
    return sharpen(_mean_probabilities(logits), exponent=exponent).to(logits.dtype)


def reduce_entropy(probabilities: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Apply ERA to probabilities that have been averaged already, such as a stream's; the result is probabilities.

    Args:
        probabilities: a distribution in each row, shape ``(N, C)``.
        temperature: ``T``, above 0; probabilities are divided by it.

    Returns:
        The softmax of ``probabilities / T``, shape ``(N, C)``.

    Raises:
        ValueError: shape or type do not fit, a row is not a distribution, or the temperature is not a finite number
            above 0.

    Source: ERA in DS-FL, Itahara et al. 2021 (arXiv:2008.06180).
    """
    expect_positive("temperature", temperature)
    expect_probabilities("probabilities", probabilities)
    return torch.softmax(probabilities.double() / temperature, dim=1).to(probabilities.dtype)


def sharpen(probabilities: Tensor, *, exponent: float = 2.0) -> Tensor:
    """Apply Enhanced ERA to probabilities that have been averaged already; the result is probabilities.

    Args:
        probabilities: a distribution in each row, shape ``(N, C)``.
        exponent: ``beta``, above 0.

    Returns:
        ``p**beta``, divided by its sum over the classes, shape ``(N, C)``.

    Raises:
        ValueError: shape or type do not fit, a row is not a distribution, or the exponent is not a finite number
            above 0.

    Source: Enhanced ERA in SCARLET, Azuma et al. 2026 (arXiv:2504.19602).
    """
    expect_positive("exponent", exponent)
    expect_probabilities("probabilities", probabilities)
    # By logarithms, so that small probabilities do not all become 0 under a large exponent.
    return torch.softmax(probabilities.double().log() * exponent, dim=1).to(probabilities.dtype)


def vote(logits: Tensor) -> Tensor:
    """Let every teacher vote for its best class; the result is probabilities.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.

    Returns:
        The share of votes for each class, shape ``(N, C)``; a teacher with several best classes splits its vote
        equally among them. The order of the teachers does not change a bit.

    Raises:
        ValueError: shape or type do not fit, there is no teacher, or a number is not finite.

    Source: majority vote; the mean of one-hot uploads in CFD, Sattler et al. 2021 (arXiv:2012.00632).
    """
    expect_logits(logits)
    best = (logits == logits.amax(dim=2, keepdim=True)).double()
    (ballots,) = in_own_order(best / best.sum(dim=2, keepdim=True))
    return ballots.mean(dim=0).to(logits.dtype)


def _mean_probabilities(logits: Tensor) -> Tensor:
    """Mean softmax of the teachers' logits ``(K, N, C)``, shape ``(N, C)``, in float64."""
    expect_logits(logits)
    means = torch.empty(logits.shape[1:], dtype=torch.float64, device=logits.device)
    for block, ordered in blocks_in_own_order(logits):
        means[block] = probabilities_of(ordered).mean(dim=0)
    return means
