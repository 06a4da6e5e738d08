"""Scores of a classifier's probabilities that need no bins: pure functions that return scalars.

They compute in the type of their arguments, but of half precision in float32; :func:`confidence_gap` in float64.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from fedkd.calibration._checks import expect_distributions, expect_pairs
from fedkd.numerics import wide


def brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the Brier score, 0 (best) to 2: squared error summed over classes, mean over samples.

    Args:
        probabilities: class probabilities, shape ``(N, C)``.
        labels: class numbers, int64, shape ``(N,)``.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, or a row is not a distribution.

    Formula: ``1 / N * sum_nc (p - [c = y])^2``.

    Source: Brier 1950, eq. 2.
    """
    expect_distributions(probabilities)
    expect_pairs("probabilities", probabilities, labels)
    return (wide(probabilities) - one_hot(labels, probabilities.shape[1])).square().sum(dim=1).mean()


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


def entropy(probabilities: Tensor) -> Tensor:
    """Return the mean entropy of predictions, in nats: 0 (certain) to ``log C`` (uniform).

    Args:
        probabilities: class probabilities, shape ``(N, C)``.

    Raises:
        ValueError: shape or type do not fit, there is no sample, or a row is not a distribution.

    Formula: ``-1 / N * sum_nc p log p``.

    Source: Shannon 1948.
    """
    expect_distributions(probabilities)
    per_sample: Tensor = torch.special.entr(wide(probabilities)).sum(dim=1)
    return per_sample.mean()


def confidence_gap(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return mean confidence minus accuracy, -1 to 1: above 0 where the classifier is over-confident.

    Its size never exceeds the expected calibration error, in which over- and under-confident bins do not cancel.

    Args:
        probabilities: class probabilities, shape ``(N, C)``; of equal largest ones the first is the prediction.
        labels: class numbers, int64, shape ``(N,)``.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, or a row is not a distribution.

    Formula: ``1 / N * sum_n (max_c p - [argmax p = y])``.

    Source: Guo et al. 2017 (arXiv:1706.04599), eq. 2, over one bin and with its sign.
    """
    expect_distributions(probabilities)
    expect_pairs("probabilities", probabilities, labels)
    confidence, predicted = probabilities.double().max(dim=1)
    return (confidence - (predicted == labels).double()).mean()
