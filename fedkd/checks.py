"""Checks shared by losses, rules and measures: shapes always, values where there are values to look at.

Shapes are known everywhere, also inside ``torch.func.vmap`` and ``torch.func.grad`` and while a function is traced;
values are not. So :func:`expect_finite` and :func:`expect_labels` look at values only in plain calls.

The learner turns this off while it trains (:func:`values_unchecked`), for three reasons. A student may diverge, and the
rule for that is not the loss's: it is measured, but teaches nobody. A cohort, trained under ``vmap``, cannot see it,
and both plans have to treat it alike. And on a GPU each look makes the processor wait for the device. What comes in
from outside (samples, labels, knowledge of others) has been validated before it gets there.
"""

import cmath
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from fedkd.torch_internals import is_transformed

_SUMMED = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}
_SHORT = 40  # characters of text that a message repeats
_unchecked: ContextVar[bool] = ContextVar("_unchecked", default=False)


@contextmanager
def values_unchecked() -> Iterator[None]:
    """Let what is called in this context look at shapes only: NaN goes in, and NaN comes out."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def expect_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor, such as an array, a list of tensors, or a number.

    Raises:
        ValueError: ``value`` is something else; the message says how to make a tensor of it.
    """
    if isinstance(value, Tensor):
        return
    if isinstance(value, Sequence) and value and all(isinstance(each, Tensor) for each in value):
        todo = "; call torch.stack on it"
    elif isinstance(value, Sequence | np.ndarray | Real) and not isinstance(value, str):
        todo = "; call torch.as_tensor on it"
    else:
        todo = ""
    raise ValueError(f"{name}: expected a tensor, found {_described(value)}{todo}.")


def expect_shape(name: str, value: Tensor, *expected: int | str) -> None:
    """Refuse a tensor of another shape.

    Args:
        name: name of the argument, for the message.
        value: the tensor.
        expected: one entry for each dimension: its size, or its letter where any size of one or more will do.

    Raises:
        ValueError: ``value`` is no tensor, has another shape, or is empty along a dimension named by a letter.
    """
    expect_tensor(name, value)
    fits = value.ndim == len(expected) and all(
        size > 0 if isinstance(wanted, str) else size == wanted
        for size, wanted in zip(value.shape, expected, strict=True)
    )
    if not fits:
        shape = ", ".join(str(wanted) for wanted in expected) + "," * (len(expected) == 1)
        empty = ", nowhere 0" if 0 in value.shape else ""
        raise ValueError(f"{name}: expected shape ({shape}){empty}, found {tuple(value.shape)}.")


def all_finite(value: Tensor) -> bool:
    """Return whether no number is NaN or infinite."""
    # The sum is finite only if all numbers are, and takes a tenth of the time of a look at each of many.
    if value.dtype in _SUMMED and cmath.isfinite(value.detach().sum().item()):
        return True
    return bool(value.isfinite().all())


def expect_finite(name: str, value: Tensor) -> None:
    """Refuse NaN and infinity, where values can be looked at.

    Args:
        name: name of the argument, for the message.
        value: the tensor, of any shape and type.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    if not _readable(value) or all_finite(value):
        return
    bad = (~value.detach().isfinite()).nonzero()
    where = tuple(bad[0].tolist())
    raise ValueError(
        f"{name}: expected finite numbers, found {value[where].item()} at {where}, "
        f"and NaN or infinity in {len(bad)} of {value.numel()} places."
    )


def expect_numbers(name: str, value: Tensor) -> None:
    """Refuse integers, and NaN and infinity where values can be looked at.

    Raises:
        ValueError: ``value`` does not hold finite floating-point numbers.
    """
    expect_tensor(name, value)
    if not value.is_floating_point():
        raise ValueError(f"{name}: expected floating-point numbers, found {value.dtype}.")
    expect_finite(name, value)


def expect_labels(name: str, value: Tensor, samples: int, classes: int, *, of: str = "class numbers") -> None:
    """Refuse what is not one class number, or number of another kind, per sample.

    Args:
        name: name of the argument, for the message.
        value: the labels.
        samples: expected number of labels ``N``; 0 will do.
        classes: number of classes ``C``.
        of: what they number, for the message.

    Raises:
        ValueError: ``value`` is not an int64 tensor of shape ``(N,)``, or a label is outside ``[0, C)``.
    """
    expect_shape(name, value, samples)
    if value.dtype != torch.int64:
        todo = "give the class numbers themselves" if value.dtype == torch.bool else "call .long() on it"
        raise ValueError(f"{name}: expected {of} of type int64, found {value.dtype}; {todo}.")
    if value.numel() and _readable(value):
        low, high = (int(bound) for bound in value.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"{name}: expected {of} from 0 to {classes - 1}, found {low if low < 0 else high}.")


def expect_not_negative(name: str, value: Tensor) -> None:
    """Refuse numbers below 0, where values can be looked at.

    Raises:
        ValueError: such a number, and its place.
    """
    if value.numel() and _readable(value) and value.min() < 0:
        place = tuple((value < 0).nonzero()[0].tolist())
        raise ValueError(f"{name}: expected no number below 0, found {value[place].item()} at {place}.")


def sum_tolerance(dtype: torch.dtype, classes: int) -> float:
    """Return how far from 1 the sum of a row of probabilities may be: a thousandth, or what the type's rounding takes.

    Rounding moves each number by half an epsilon of itself, so their sum by half an epsilon; four times that leaves
    room for a mean of rounded rows. Below the smallest normal number the step is fixed, so many classes take more.

    Args:
        dtype: of the probabilities.
        classes: numbers in a row.
    """
    kind = torch.finfo(dtype)
    return max(1e-3, 2 * kind.eps + classes * kind.tiny * kind.eps)


def expect_booleans(name: str, value: Tensor) -> None:
    """Refuse a tensor of another type than bool.

    Raises:
        ValueError: ``value`` holds something else.
    """
    if value.dtype != torch.bool:
        raise ValueError(f"{name}: expected booleans, found {value.dtype}.")


def expect_number(name: str, value: float) -> None:
    """Refuse a setting that is NaN or infinite.

    Raises:
        ValueError: ``value`` is no finite number.
    """
    _expect_real(name, value, "a finite number")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, found {value}.")


def expect_positive(name: str, value: float) -> None:
    """Refuse a setting that is not above zero.

    Raises:
        ValueError: ``value`` is no number, zero, negative, infinite or NaN.
    """
    _expect_real(name, value, "a finite number above 0")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, found {value}.")


def expect_within(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuse a setting outside ``[low, high]``; without ``high``, any finite number from ``low`` on will do.

    Raises:
        ValueError: ``value`` is no number, outside, infinite or NaN.
    """
    wanted = f"a number from {low} to {high}" if high < math.inf else f"a finite number, {low} or above"
    _expect_real(name, value, wanted)
    if not (low <= value <= high and value < math.inf):
        raise ValueError(f"{name}: expected {wanted}, found {value}.")


def expect_integer(name: str, value: int, low: int, high: int | None = None) -> None:
    """Refuse a setting that is no whole number from ``low`` on, or up to ``high``.

    Raises:
        ValueError: ``value`` is not an ``int``, or outside.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        wanted = f"of {low} or more" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name}: expected an integer {wanted}, found {value!r}.")


def expect_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a setting that is none of those there are.

    Raises:
        ValueError: ``value`` is not among ``choices``.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, found {value!r}.")


def _expect_real(name: str, value: object, wanted: str) -> None:
    """Refuse text, None and the like; a tensor of one number is one."""
    if not (isinstance(value, Real) or (isinstance(value, Tensor) and value.ndim == 0)):
        raise ValueError(f"{name}: expected {wanted}, found {_described(value)}.")


def _described(value: object) -> str:
    """Return a short text or None as it is, and of anything else its type."""
    short = value is None or (isinstance(value, str) and len(value) <= _SHORT) or isinstance(value, Real)
    if short:
        return repr(value)
    kind = "a function" if callable(value) and not isinstance(value, torch.nn.Module) else type(value).__name__
    return f"{kind} of shape {tuple(value.shape)}" if isinstance(value, np.ndarray | Tensor) else kind


def _readable(value: Tensor) -> bool:
    """Whether numbers can be read from the tensor: not under a transform, nor while tracing, compiling or capturing."""
    if torch.compiler.is_compiling():  # on its own, and first: the compiler does not understand what follows
        return False
    return not (
        _unchecked.get()
        or is_transformed()
        or type(value) not in (Tensor, torch.nn.Parameter)  # a stand-in, such as a FakeTensor
        or value.is_meta
        or (value.is_cuda and torch.cuda.is_current_stream_capturing())
    )
