"""What losses on logits share: how they receive their arguments, and the divergence that most of them are made of."""

import math

import torch
from torch import Tensor

from fedkd.checks import expect_numbers, expect_positive, expect_shape
from fedkd.numerics import wide

WARM = 10.0  # temperature up to which the plain formula loses no more than three digits
_NEAR = 0.5  # size of d / T up to which the series is exact
_TERMS = 12  # of the series, for float64
_TINY = 1e-4


def received(name: str, logits: Tensor, *, classes: int = 1) -> Tensor:
    """Take logits ``(N, C)``, in float32 or wider.

    Args:
        name: name of the argument, for messages.
        logits: the argument.
        classes: the smallest ``C`` that makes sense.

    Raises:
        ValueError: not ``(N, C)``, too few classes, or a value is not finite.
    """
    expect_shape(name, logits, "N", "C")
    if logits.shape[1] < classes:
        raise ValueError(f"{name}: expected at least {classes} classes, found {logits.shape[1]}.")
    expect_numbers(name, logits)
    return wide(logits)


def received_pair(
    student: Tensor,
    teacher: Tensor,
    *,
    names: tuple[str, str] = ("student", "teacher"),
    classes: int = 1,
) -> tuple[Tensor, Tensor]:
    """Take two ``(N, C)`` tensors of one shape, in float32 or wider; the second is constant.

    Raises:
        ValueError: a shape does not fit, or a value is not finite.
    """
    student = received(names[0], student, classes=classes)
    expect_shape(names[1], teacher, *student.shape)
    expect_numbers(names[1], teacher)
    return student, teacher.detach().to(student.dtype)


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 * KL(teacher || student)`` of softened logits, summed over classes and averaged over samples.

    The gradient goes to both sides: callers detach the one that is to stay as it is.

    Above a temperature of 10 it is computed from the gaps between the logits, which stays exact for any temperature.

    Args:
        student: logits, shape ``(N, C)``.
        teacher: logits, shape ``(N, C)``.
        temperature: ``T``, above 0.

    Raises:
        ValueError: the temperature is not above 0.
    """
    expect_positive("temperature", temperature)
    log_student = torch.log_softmax(student / temperature, dim=1)
    log_teacher = torch.log_softmax(teacher / temperature, dim=1)
    per_sample = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)
    if temperature <= WARM:
        return temperature**2 * per_sample.mean()
    weights = log_teacher.exp()
    gaps = student - teacher
    gaps = gaps - (weights * gaps).sum(dim=1, keepdim=True)
    near = ((gaps / temperature).abs() <= _NEAR).all(dim=1)
    far = torch.where(near, 0.0, per_sample) * temperature * temperature
    return torch.where(near, _of_near(weights, torch.where(near[:, None], gaps, 0.0), temperature), far).mean()


def _of_near(weights: Tensor, gaps: Tensor, temperature: float) -> Tensor:
    """``T^2 KL`` of each row from the gaps ``d`` between its logits, with mean 0 under the teacher's ``weights``.

    ``KL = log sum_c q exp(d / T)``, and as ``sum_c q d = 0``, also ``log(1 + s / T^2)`` with
    ``s = T^2 sum_c q (exp(d / T) - 1 - d / T) = sum_c q d^2 (1/2 + d / 6T + ...)``. So no large numbers cancel, as they
    do in a difference of logarithms once ``KL`` is small, and none leaves the range of its type.
    """
    steps = gaps / temperature
    series = torch.zeros_like(steps)
    for power in range(_TERMS, -1, -1):
        series = series * steps + 1 / math.factorial(power + 2)
    total = (weights * gaps.square() * series).sum(dim=1)
    small = total / temperature / temperature
    tiny = small < _TINY  # where log(1 + x) / x has a series of few terms, and a quotient would have no gradient
    safe = torch.where(tiny, 1.0, small)
    return total * torch.where(tiny, 1 - small / 2 + small.square() / 3, torch.log1p(safe) / safe)


def at(values: Tensor, labels: Tensor) -> Tensor:
    """Return each row's entry at its label: ``(N,)`` from ``(N, C)``."""
    return values.gather(1, labels[:, None])[:, 0]


def without(values: Tensor, labels: Tensor) -> Tensor:
    """Return each row without the entry at its label: ``(N, C - 1)`` from ``(N, C)``, in the same order.

    The column is left out, not masked by a large negative number, which half precision cannot hold.
    """
    columns = torch.arange(values.shape[1] - 1, device=values.device)
    return values.gather(1, columns + (columns >= labels[:, None]))
