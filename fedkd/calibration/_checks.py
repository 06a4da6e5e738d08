"""What measures of calibration expect of their arguments."""

import torch
from torch import Tensor


def expect_pairs(name: str, rows: Tensor, labels: Tensor) -> None:
    """Refuse what is not a table of finite numbers ``(N, C)`` with a class number for each of its rows.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, or a number is not finite.
    """
    expect_rows(name, rows)
    if tuple(labels.shape) != tuple(rows.shape[:1]):
        raise ValueError(f"labels: expected shape {tuple(rows.shape[:1])}, found {tuple(labels.shape)}.")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels: expected int64, found {labels.dtype}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= rows.shape[1]:
        raise ValueError(f"labels: expected class numbers from 0 to {rows.shape[1] - 1}, found {low} to {high}.")


def expect_rows(name: str, rows: Tensor) -> None:
    """Refuse what is not a table of finite floating-point numbers ``(N, C)`` with at least one sample and class.

    Raises:
        ValueError: the shape or the type does not fit, or a number is not finite.
    """
    if rows.ndim != 2 or 0 in rows.shape:  # noqa: PLR2004 - (N, C)
        raise ValueError(f"{name}: expected shape (N, C) with N and C at least 1, found {tuple(rows.shape)}.")
    if not rows.is_floating_point():
        raise ValueError(f"{name}: expected floating-point numbers, found {rows.dtype}.")
    unfit = ~torch.isfinite(rows)
    if unfit.any():
        place = tuple(unfit.nonzero()[0].tolist())
        raise ValueError(f"{name}: expected finite numbers, found {rows[place].item()} at {place}.")


def expect_distributions(probabilities: Tensor) -> None:
    """Refuse rows that are not probability distributions, within ``1e-3`` of a sum of 1: logits, for one.

    Raises:
        ValueError: a number is negative, or a row does not sum to 1.
    """
    expect_rows("probabilities", probabilities)
    if (lowest := probabilities.min().item()) < 0:
        raise ValueError(
            f"probabilities: expected no number below 0, found {lowest}; take the softmax of logits first."
        )
    sums = probabilities.double().sum(dim=1)
    if (furthest := (sums - 1).abs().max().item()) > 1e-3:  # noqa: PLR2004 - bfloat16 rows do not sum to 1 exactly
        raise ValueError(f"probabilities: expected rows that sum to 1, found one that is {furthest:g} away from it.")


def expect_bins(bins: int) -> None:
    """Refuse what is no number of bins.

    Raises:
        ValueError: ``bins`` is not an integer of 1 or more.
    """
    if not isinstance(bins, int) or isinstance(bins, bool) or bins < 1:
        raise ValueError(f"bins: expected an integer of 1 or more, found {bins!r}.")
