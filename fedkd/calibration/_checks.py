"""What measures of calibration expect of their arguments."""

import torch
from torch import Tensor

from fedkd.checks import expect_labels, expect_numbers, expect_shape, sum_tolerance
from fedkd.numerics import wide


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


def as_probabilities(logits: Tensor) -> Tensor:
    """Return probabilities ``(N, C)``, in float32 at least, of what is either probabilities or logits.

    Rows without a negative number that all sum to 1, within the tolerance of their dtype, are probabilities and taken
    as they are; anything else is logits, of which the softmax is taken.

    Args:
        logits: logits or probabilities, shape ``(N, C)``.

    Raises:
        ValueError: the shape or the type does not fit, or a number is not finite.
    """
    expect_rows("logits", logits)
    rows = wide(logits)
    return rows if _are_distributions(logits) else torch.softmax(rows, dim=1)


def _are_distributions(rows: Tensor) -> bool:
    away = (rows.detach().double().sum(dim=1) - 1).abs()
    return bool((rows >= 0).all() and (away <= sum_tolerance(rows.dtype, rows.shape[1])).all())
