"""Small inputs and formulas in NumPy for the tests of the losses."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]

STUDENT = np.array([[0.3, -1.2, 2.0, 0.4], [1.5, 0.1, -0.4, -2.2], [-2.0, 0.7, 0.2, 1.1], [0.0, 0.9, -1.1, 0.6]])
TEACHER = np.array([[1.0, -0.5, 0.6, -1.4], [0.2, 0.4, -1.3, 0.9], [-0.7, 1.9, 0.5, -0.3], [2.2, -0.8, 0.1, 1.2]])
CLASSES = np.array([2, 0, 1, 3])
"""Logits of four samples in four classes, and their labels."""


def softmax(logits: Array) -> Array:
    """Return the softmax along the last dimension."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Array = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def kl(first: Array, second: Array) -> Array:
    """Return ``KL(first || second)`` along the last dimension."""
    divergence: Array = (first * np.log(first / second)).sum(axis=-1)
    return divergence


def length_one(rows: Array) -> Array:
    """Return vectors along the last dimension scaled to length one."""
    scaled: Array = rows / np.sqrt((rows**2).sum(axis=-1, keepdims=True))
    return scaled


def draw(seed: int, *shape: int) -> Array:
    """Return fixed numbers of about unit size, far from the kinks of the losses."""
    return np.random.default_rng(seed).normal(size=shape)


@pytest.fixture
def student() -> Tensor:
    return torch.tensor(STUDENT, requires_grad=True)


@pytest.fixture
def teacher() -> Tensor:
    return torch.tensor(TEACHER)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor(CLASSES)
