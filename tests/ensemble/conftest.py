"""Teachers for the tests of the rules, and what every rule must do."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd import ensemble

Array = NDArray[np.float64]

TEACHERS, SAMPLES, CLASSES = 7, 6, 4
LOGITS = 2 * np.random.default_rng(1).normal(size=(TEACHERS, SAMPLES, CLASSES))
LABELS = np.random.default_rng(2).integers(0, CLASSES, SAMPLES)
COUNTS = np.random.default_rng(3).integers(0, 50, (TEACHERS, CLASSES))
SIZES = np.random.default_rng(4).integers(1, 100, TEACHERS)


def guarded(logits: Tensor) -> Tensor:
    return ensemble.exp_guard(logits, torch.zeros(len(logits)), eta=2.0).probabilities


# Rules that take nothing but logits; the others are tied to the arguments above where the shapes fit.
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean_logits": ensemble.mean_logits,
    "mean_probabilities": ensemble.mean_probabilities,
    "mean_standardised_logits": ensemble.mean_standardised_logits,
    "standardised_as_in_the_code": lambda z: ensemble.mean_standardised_logits(z, mode="code"),
    "era": ensemble.era,
    "enhanced_era": ensemble.enhanced_era,
    "vote": ensemble.vote,
    "by_entropy": ensemble.by_entropy,
    "by_confidence": ensemble.by_confidence,
    "by_variance": ensemble.by_variance,
    "by_variance_of_probabilities": lambda z: ensemble.by_variance(z, of="probabilities"),
    "ebkd": ensemble.ebkd,
    "coordinate_median": ensemble.coordinate_median,
    "trimmed_mean": lambda z: ensemble.trimmed_mean(z, trim=(len(z) - 1) // 4),
    "geometric_median": ensemble.geometric_median,
    "cronus": ensemble.cronus,
    "cronus_as_in_the_code": lambda z: ensemble.cronus(z, mode="code"),
    "exp_guard": guarded,
}
GIVES_LOGITS = {"mean_logits", "mean_standardised_logits", "standardised_as_in_the_code"}


def softmax(logits: Array, axis: int = -1) -> Array:
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    rows: Array = powers / powers.sum(axis=axis, keepdims=True)
    return rows


def entropy(rows: Array) -> Array:
    """Entropy of each row, in nats; 0 log 0 is 0."""
    sums: Array = -np.sum(np.where(rows > 0, rows * np.log(np.where(rows > 0, rows, 1)), 0), axis=-1)
    return sums


@pytest.fixture
def logits() -> Tensor:
    return torch.tensor(LOGITS)
