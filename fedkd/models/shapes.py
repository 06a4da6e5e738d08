"""Shapes of what a model takes: one view's sample, or the parts of a composite view, flattened and joined."""

import math
from collections.abc import Sequence

Shape = tuple[int, ...]
InputShape = Shape | tuple[Shape, ...]  # of one sample; of each part, if there are several


def parts(input_shape: InputShape) -> tuple[Shape, ...]:
    """Return the shape of each part; of the one part if there is only one.

    Example:
        >>> parts((1, 8, 8)), parts(((3, 128), (6,)))
        (((1, 8, 8),), ((3, 128), (6,)))
    """
    nested = tuple(part for part in input_shape if isinstance(part, tuple))
    return nested or (tuple(size for size in input_shape if isinstance(size, int)),)


def width(input_shape: InputShape) -> int:
    """Return the number of values in one sample."""
    return sum(math.prod(part) for part in parts(input_shape))


def sample_shape(input_shape: InputShape) -> Shape:
    """Return the shape in which a sample reaches the model: flat if it has several parts."""
    whole = tuple(size for size in input_shape if isinstance(size, int))
    return whole if len(whole) == len(input_shape) else (width(input_shape),)


def of_rank(input_shape: InputShape, rank: int) -> Shape | None:
    """Return the shape if it is that of one part with so many axes, else None."""
    shape = sample_shape(input_shape)
    return shape if shape == input_shape and len(shape) == rank else None


def from_plain(values: Sequence[int | Sequence[int]]) -> InputShape:
    """Return the shape that JSON made lists of.

    Example:
        >>> from_plain([[3, 128], [6]])
        ((3, 128), (6,))
    """
    if all(isinstance(value, int) for value in values):
        return tuple(value for value in values if isinstance(value, int))
    return tuple(tuple(value) for value in values if not isinstance(value, int))
