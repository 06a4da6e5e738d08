"""What measures of calibration expect of their arguments."""

import torch
from torch import Tensor

from fedkd.checks import expect_labels, expect_numbers, expect_shape


def expect_pairs(name: str, rows: Tensor, labels: Tensor) -> None:
    """Refuse what is not a table of finite numbers ``(N, C)`` with a class number for each of its rows.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, or a number is not finite.
    """
    expect_rows(name, rows)
    expect_labels("labels", labels, *rows.shape)


def expect_rows(name: str, rows: Tensor) -> None:
    """Refuse what is not a table of finite floating-point numbers ``(N, C)`` with at least one sample and class.

    Raises:
        ValueError: the shape or the type does not fit, or a number is not finite.
    """
    expect_shape(name, rows, "N", "C")
    expect_numbers(name, rows)


def expect_distributions(probabilities: Tensor) -> None:
    """Refuse rows that are not probability distributions, within ``1e-3`` of a sum of 1: logits, for one.

    Rows of bfloat16 may be ``1/128`` away, for so coarse are its numbers.

    Raises:
        ValueError: a number is negative, or a row does not sum to 1.
    """
    expect_rows("probabilities", probabilities)
    if (lowest := probabilities.min().item()) < 0:
        raise ValueError(
            f"probabilities: expected no number below 0, found {lowest}; take the softmax of logits first."
        )
    sums = probabilities.double().sum(dim=1)
    if (furthest := (sums - 1).abs().max().item()) > max(1e-3, torch.finfo(probabilities.dtype).eps):
        raise ValueError(f"probabilities: expected rows that sum to 1, found one that is {furthest:g} away from it.")
