"""Class-wise knowledge: for each class, the mean over the clients that hold it.

A client that does not hold a class may leave anything in its place, NaN included: it is not looked at.
"""

import torch
from torch import Tensor

from fedkd.checks import expect_numbers, expect_shape
from fedkd.ensemble._checks import expect_not_negative, expect_teachers, in_own_order


def leave_one_out(class_means: Tensor, present: Tensor, own: int | None) -> tuple[Tensor, Tensor]:
    """Average, for each class, over the clients that hold it, leaving one client out.

    Args:
        class_means: each client's mean output for each class, shape ``(K, C, D)``.
        present: whether a client holds a class, bool, shape ``(K, C)``; where it does not, its mean is not looked at.
        own: row of the client that is left out, as it shall not be its own teacher; ``None`` leaves nobody out.

    Returns:
        The means, shape ``(C, D)``, zero where nobody remains; and whether anybody does, bool, shape ``(C,)``. The
        order of the clients does not change a bit.

    Raises:
        ValueError: a shape does not fit, a number that is looked at is not finite, or there is no such row.

    Formula: ``sum_(k != own) m_k(c) [k holds c] / sum_(k != own) [k holds c]``.

    Source: FD, Jeong et al. 2018 (arXiv:1811.11479), algorithm 1.
    """
    _expect_class_wise("class_means", class_means, "present", present)
    clients = len(class_means)
    if own is not None and not (isinstance(own, int) and 0 <= own < clients):
        raise ValueError(f"own: expected None or a row from 0 to {clients - 1}, found {own!r}.")
    others = torch.arange(clients, device=present.device) != (-1 if own is None else own)
    means, holders = weighted_class_means(class_means, present.bool() & others[:, None])
    return means, holders > 0


def weighted_class_means(means: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Average, for each class, the clients' means weighted by their numbers of samples.

    Args:
        means: each client's mean for each class, shape ``(K, C, d)``; not looked at where the count is zero.
        counts: numbers of samples behind them, zero or above, int64, shape ``(K, C)``; bool counts clients.

    Returns:
        The means, shape ``(C, d)``, zero where no client has a sample; and the total counts, shape ``(C,)``. The order
        of the clients does not change a bit.

    Raises:
        ValueError: a shape does not fit, a number that is looked at is not finite, or a count is negative.

    Formula: ``sum_k n_k(c) m_k(c) / sum_k n_k(c)``.

    Source: prototype aggregation of FedProto, Tan et al. 2022 (arXiv:2105.00243), as a plain weighted mean.
    """
    _expect_class_wise("means", means, "counts", counts)
    # Not a product with a zero weight: an absent row may hold anything, NaN included.
    held, weights = in_own_order(torch.where(counts[:, :, None] > 0, means, 0.0), counts)
    weights = weights.double()[:, :, None]
    weighted = held.double() * weights
    total = weights.sum(dim=0)
    # A class that nobody has sums to zero, and zero it stays.
    average = weighted.sum(dim=0) / torch.where(total > 0, total, 1.0)
    return average.to(means.dtype), counts.sum(dim=0)


def _expect_class_wise(name: str, value: Tensor, mask_name: str, mask: Tensor) -> None:
    """Refuse class-wise knowledge that is not ``(K, C, d)``, finite where the ``(K, C)`` beside it is above 0."""
    expect_teachers(name, value)
    expect_shape(mask_name, mask, *value.shape[:2])
    expect_not_negative(mask_name, mask)
    expect_numbers(name, torch.where(mask[:, :, None] > 0, value, 0))
