"""What the rules expect of their arguments, and the order in which they look at the teachers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fedkd import checks
from fedkd.checks import expect_numbers, expect_tensor, sum_tolerance

_LARGEST = 1e150  # squares of float64 numbers up to here, and sums of these, are finite
_HEAD = 16  # numbers of each teacher that nearly always tell it from the others
_AT_ONCE = 500_000  # numbers in a block of samples, which then stays in a processor's cache


def expect_teachers(name: str, value: Tensor) -> None:
    """Refuse a tensor that is not ``(K, N, C)`` with at least one teacher and one class.

    Raises:
        ValueError: ``value`` has another shape.
    """
    expect_tensor(name, value)
    if value.ndim != 3 or value.shape[0] == 0 or value.shape[2] == 0:  # noqa: PLR2004 - the three letters K, N, C
        raise ValueError(f"{name}: expected shape (K, N, C) with K and C at least 1, found {tuple(value.shape)}.")


def expect_squarable(name: str, value: Tensor) -> None:
    """Refuse what is not floating-point, not finite, or too large to be squared in float64.

    Raises:
        ValueError: the type, or the first number that does not fit and its place.
    """
    expect_numbers(name, value)
    if value.dtype == torch.float64 and (unfit := value.abs() > _LARGEST).any():
        place = tuple(unfit.nonzero()[0].tolist())
        raise ValueError(f"{name}: expected numbers up to {_LARGEST:g}, found {value[place].item()} at {place}.")


def expect_logits(logits: Tensor) -> None:
    """Refuse logits that are not finite numbers of shape ``(K, N, C)``.

    Raises:
        ValueError: the shape, the type or a number does not fit.
    """
    expect_teachers("logits", logits)
    expect_squarable("logits", logits)


def expect_probabilities(name: str, value: Tensor) -> None:
    """Refuse what is not a table ``(N, C)`` of probability distributions, within the tolerance of their dtype.

    Raises:
        ValueError: the shape, the type, a number or the sum of a row does not fit.
    """
    expect_tensor(name, value)
    if value.ndim != 2 or value.shape[1] == 0:  # noqa: PLR2004 - (N, C)
        raise ValueError(f"{name}: expected shape (N, C) with C at least 1, found {tuple(value.shape)}.")
    expect_numbers(name, value)
    if value.numel() and (lowest := value.min().item()) < 0:
        raise ValueError(f"{name}: expected no number below 0, found {lowest}; take the softmax of logits first.")
    sums = value.double().sum(dim=1)
    if not ((sums - 1).abs() <= sum_tolerance(value.dtype, value.shape[1])).all():
        worst = sums[(sums - 1).abs().argmax()].item()
        raise ValueError(
            f"{name}: expected rows that sum to 1, found one that sums to {worst}; "
            "divide rows by their sums, or take the softmax of logits first."
        )


def expect_weights(weights: Tensor, logits: Tensor) -> None:
    """Refuse weights that are not one finite number, zero or above, for each teacher, or for each of its samples.

    Raises:
        ValueError: the shape does not fit, a weight is negative or not finite, or all weights of a sample are zero.
    """
    expect_tensor("weights", weights)
    shapes = (tuple(logits.shape[:1]), tuple(logits.shape[:2]))
    if tuple(weights.shape) not in shapes:
        raise ValueError(f"weights: expected shape {shapes[0]} or {shapes[1]}, found {tuple(weights.shape)}.")
    expect_not_negative("weights", weights)
    if weights.numel() and not (weights.amax(dim=0) > 0).all():
        raise ValueError("weights: expected at least one above 0 for each sample, found only zeros.")


def expect_not_negative(name: str, value: Tensor) -> None:
    """Refuse numbers, of any real type, that are negative or not finite.

    Raises:
        ValueError: such a number, and its place.
    """
    if value.is_floating_point():
        expect_squarable(name, value)
    checks.expect_not_negative(name, value)


def own_order(logits: Tensor, *more: Tensor) -> list[int]:
    """Return the teachers' own order, which depends on what they say and not on how they arrived.

    A sum of rounded numbers depends on its order. Each rule therefore sorts the teachers by the bytes of their
    logits first: permuted teachers are the same input afterwards, and give the same bits. Only teachers that are
    equal in all that the rule looks at may stand in either order.

    Args:
        logits: outputs of the teachers, shape ``(K, N, C)``.
        more: what else the rule is told of each teacher, shapes ``(K, ...)``.

    Returns:
        Row numbers of the teachers, first to last.
    """
    heads = _bytes_of(logits.reshape(len(logits), -1)[:, :_HEAD])
    if len(set(heads)) == len(heads):
        return sorted(range(len(heads)), key=heads.__getitem__)
    wholes = list(zip(*(_bytes_of(each.reshape(len(each), -1)) for each in (logits, *more)), strict=True))
    return sorted(range(len(wholes)), key=wholes.__getitem__)


def in_own_order(logits: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
    """Return the logits, and what else is known of each teacher, in the teachers' own order (:func:`own_order`)."""
    order = own_order(logits, *more)
    return tuple(each.detach()[order].contiguous() for each in (logits, *more))


def blocks_in_own_order(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the samples block by block, and their logits in the teachers' own order, ``(K, block, C)``."""
    order = torch.tensor(own_order(logits), device=logits.device)
    teachers, samples, classes = logits.shape
    length = max(1, _AT_ONCE // (teachers * classes))
    for start in range(0, samples, length):
        block = slice(start, start + length)
        yield block, logits.detach()[:, block].index_select(0, order)


def back_in_place(rows: Tensor, order: list[int]) -> Tensor:
    """Return the rows, which stand in the teachers' own order, as the teachers arrived."""
    placed = torch.empty_like(rows)
    placed[order] = rows
    return placed


def probabilities_of(logits: Tensor) -> Tensor:
    """Softmax of logits ``(K, N, C)`` over the classes, in float64."""
    # Over few classes that lie side by side it takes four times as long.
    return torch.softmax(logits.double().transpose(1, 2).contiguous(), dim=1).transpose(1, 2)


def _bytes_of(rows: Tensor) -> list[bytes]:
    """Return the bytes of each row."""
    flat = rows.detach().cpu().contiguous()
    if not flat.shape[1]:
        return [b""] * len(flat)
    return [row.tobytes() for row in flat.view(torch.uint8).numpy()]
