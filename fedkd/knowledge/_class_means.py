"""Means per class."""

import torch
from torch import Tensor


def class_means(values: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean of values ``(N, D)`` per class, ``(C, D)``, zero where absent, and the counts, ``(C,)``."""
    one_hot = torch.nn.functional.one_hot(labels, classes)
    counts = one_hot.sum(0)
    sums = one_hot.T.double() @ values.double()
    return (sums / counts.clamp(min=1)[:, None]).to(values.dtype), counts
