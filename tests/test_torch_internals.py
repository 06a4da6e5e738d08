"""The few contacts with torch's non-public parts."""

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from fedkd.torch_internals import (
    batch_size,
    batched,
    is_batched,
    is_transformed,
    unwrapped,
    with_batch_at,
)

GIVEN = torch.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_hidden_axis_can_be_shown_and_hidden_again(axis: int) -> None:
    seen: list[Tensor] = []

    def doubled(x: Tensor, y: Tensor) -> Tensor:
        assert (is_batched(x), is_batched(y), batch_size(x)) == (True, False, GIVEN.shape[axis])
        seen.extend([with_batch_at(1, x, batch_size(x)), with_batch_at(0, y, batch_size(x))])
        return batched(2 * seen[0], 1)

    found = vmap(doubled, in_dims=(axis, None))(GIVEN, torch.ones(5))

    assert torch.equal(found, 2 * GIVEN.movedim(axis, 0))
    assert torch.equal(seen[0], GIVEN.movedim(axis, 1))
    assert torch.equal(seen[1], torch.ones(GIVEN.shape[axis], 5))
    assert seen[1].untyped_storage().nbytes() == torch.ones(5).nbytes, "what is repeated is not copied"


def test_a_tensor_in_a_gradient_within_vmap_is_no_batch() -> None:
    marks: list[bool] = []

    def square(x: Tensor) -> Tensor:
        marks.append(is_batched(x))
        return x.square()

    vmap(grad(square))(torch.ones(3))
    vmap(square)(torch.ones(3))
    assert marks == [False, True]
    assert not is_batched(torch.ones(3))


def test_transforms_are_noticed() -> None:
    marks: list[bool] = []

    def square(x: Tensor) -> Tensor:
        marks.append(is_transformed())
        return x.square()

    for function in (vmap(square), vmap(grad(square)), square):
        function(torch.ones(3))
    assert marks == [True, True, False]


def test_a_batch_is_the_innermost_ones_and_can_be_taken_out_of_all() -> None:
    seen: list[bool] = []

    def outer(x: Tensor) -> Tensor:
        def inner(y: Tensor) -> Tensor:
            seen.extend([is_batched(x), is_batched(y), is_batched(x * y)])
            assert torch.equal(unwrapped(y), given)
            assert sorted(unwrapped(x * y).shape) == [2, 3, 4]
            return x * y

        assert is_batched(x)
        return vmap(inner)(given)

    given = torch.ones(3, 4)
    vmap(outer)(torch.ones(2, 4))

    assert seen == [False, True, True]
