"""How losses on features take their arguments: checked, in float32 or wider, the teacher's side constant."""

from torch import Tensor

from fedkd.checks import expect_finite, expect_numbers, expect_shape, expect_tensor
from fedkd.numerics import wide

Names = tuple[str, str]

_NAMES = ("student", "teacher")


def expect_all_positive(name: str, value: Tensor) -> None:
    """Refuse a tensor with a value that is not a finite number above 0.

    Raises:
        ValueError: there is such a value.
    """
    expect_numbers(name, value)
    try:
        expect_finite(name, value.detach().log())
    except ValueError:
        raise ValueError(f"{name}: expected numbers above 0, found {value.min().item()}.") from None


def alike(student: Tensor, teacher: Tensor, *, names: Names = _NAMES) -> tuple[Tensor, Tensor]:
    """Take features ``(N, ...)`` of one shape; the second is constant.

    Raises:
        ValueError: a shape does not fit, or a value is not a finite number.
    """
    expect_tensor(names[0], student)
    expect_shape(names[0], student, "N", *"d" * (student.ndim - 1))
    expect_shape(names[1], teacher, *student.shape)
    return _taken(student, teacher, names)


def maps(student: Tensor, teacher: Tensor, *, names: Names = _NAMES) -> tuple[Tensor, Tensor]:
    """Take feature maps ``(N, C, H, W)`` and ``(N, D, H', W')`` of the same samples; the second is constant.

    Raises:
        ValueError: a shape does not fit, or a value is not a finite number.
    """
    expect_shape(names[0], student, "N", "C", "H", "W")
    expect_shape(names[1], teacher, len(student), "D", "H'", "W'")
    return _taken(student, teacher, names)


def rows(student: Tensor, teacher: Tensor, *, names: Names = _NAMES) -> tuple[Tensor, Tensor]:
    """Take features ``(N, ...)`` of the same samples, flattened to ``(N, d)`` and ``(N, e)``; the second is constant.

    Raises:
        ValueError: a shape does not fit, or a value is not a finite number.
    """
    expect_tensor(names[0], student)
    expect_tensor(names[1], teacher)
    expect_shape(names[0], student, "N", *"d" * max(1, student.ndim - 1))
    expect_shape(names[1], teacher, len(student), *"e" * max(1, teacher.ndim - 1))
    student, teacher = _taken(student, teacher, names)
    return student.flatten(1), teacher.flatten(1)


def _taken(student: Tensor, teacher: Tensor, names: Names) -> tuple[Tensor, Tensor]:
    expect_numbers(names[0], student)
    expect_numbers(names[1], teacher)
    student = wide(student)
    return student, teacher.detach().to(student.dtype)
