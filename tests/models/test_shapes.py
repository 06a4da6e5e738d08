"""Shapes of one part and of several."""

import json

import pytest

from fedkd.models.shapes import InputShape, from_plain, of_rank, parts, sample_shape, width

CASES: list[tuple[InputShape, tuple[tuple[int, ...], ...], int, tuple[int, ...]]] = [
    ((1, 8, 8), ((1, 8, 8),), 64, (1, 8, 8)),
    ((7,), ((7,),), 7, (7,)),
    ((), ((),), 1, ()),
    (((3, 128), (3, 128)), ((3, 128), (3, 128)), 768, (768,)),
    (((1, 2, 3), (4,), ()), ((1, 2, 3), (4,), ()), 11, (11,)),
]


@pytest.mark.parametrize(("shape", "each", "values", "whole"), CASES)
def test_shapes(shape: InputShape, each: tuple[tuple[int, ...], ...], values: int, whole: tuple[int, ...]) -> None:
    assert parts(shape) == each
    assert width(shape) == values
    assert sample_shape(shape) == whole
    assert from_plain(json.loads(json.dumps(shape))) == shape


def test_only_one_part_has_a_rank() -> None:
    assert of_rank((3, 128), 2) == (3, 128)
    assert of_rank((3, 128), 1) is None
    assert of_rank(((3, 128), (3, 128)), 2) is None
    assert of_rank(((3, 128), (3, 128)), 1) is None
    assert of_rank((), 0) == ()
