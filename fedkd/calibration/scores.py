"""Scores of a classifier's predictions that need no bins: pure functions that return scalars.

They compute in the type of their arguments, but of half precision in float32; :func:`confidence_gap` in float64.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from fedkd.calibration._checks import as_probabilities, expect_pairs
from fedkd.numerics import wide


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the Brier score, 0 (best) to 2: squared error summed over classes, mean over samples.

    Args:
        logits: logits or probabilities, shape ``(N, C)``: rows without a negative number that all sum to 1, within the
            tolerance of their dtype, are probabilities and taken as they are; anything else is logits, of which the
            softmax is taken.
        labels: class numbers, int64, shape ``(N,)``.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, or a number is not finite.

    Formula: ``1 / N * sum_nc (p - [c = y])^2``.

    Source: Brier 1950, eq. 2.
    """
    expect_pairs("logits", logits, labels)
    return (as_probabilities(logits) - one_hot(labels, logits.shape[1])).square().sum(dim=1).mean()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the labels, in nats.

    Args:
        logits: class scores before the softmax, shape ``(N, C)``.
        labels: class numbers, int64, shape ``(N,)``.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, or a logit is not finite.

    Formula: ``-1 / N * sum_n log softmax(logits)_y``.

    Source: Guo et al. 2017 (arXiv:1706.04599), eq. 6.
    """
    expect_pairs("logits", logits, labels)
    return cross_entropy(wide(logits), labels)


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of predictions, in nats: 0 (certain) to ``log C`` (uniform).

    Args:
        logits: logits or probabilities, shape ``(N, C)``: rows without a negative number that all sum to 1, within the
            tolerance of their dtype, are probabilities and taken as they are; anything else is logits, of which the
            softmax is taken.

    Raises:
        ValueError: shape or type do not fit, there is no sample, or a number is not finite.

    Formula: ``-1 / N * sum_nc p log p``.

    Source: Shannon 1948.
    """
    per_sample: Tensor = torch.special.entr(as_probabilities(logits)).sum(dim=1)
    return per_sample.mean()


def confidence_gap(logits: Tensor, labels: Tensor) -> Tensor:
    """Return mean confidence minus accuracy, -1 to 1: above 0 where the classifier is over-confident.

    Its size never exceeds the expected calibration error, in which over- and under-confident bins do not cancel.

    Args:
        logits: logits or probabilities, shape ``(N, C)``: rows without a negative number that all sum to 1, within the
            tolerance of their dtype, are probabilities and taken as they are; anything else is logits, of which the
            softmax is taken. Of equal largest ones the first is the prediction.
        labels: class numbers, int64, shape ``(N,)``.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, or a number is not finite.

    Formula: ``1 / N * sum_n (max_c p - [argmax p = y])``.

    Source: Guo et al. 2017 (arXiv:1706.04599), eq. 2, over one bin and with its sign.
    """
    expect_pairs("logits", logits, labels)
    confidence, predicted = as_probabilities(logits).double().max(dim=1)
    return (confidence - (predicted == labels).double()).mean()
