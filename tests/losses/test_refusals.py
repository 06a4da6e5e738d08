"""What every loss refuses, and where it does not look."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fedkd import losses
from tests.losses.examples import EXAMPLES, Example
from tests.losses.trees import floats, is_float, replaced

every_loss = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())


def with_bad(value: Any, bad: float) -> Iterator[Any]:
    """Yield the value with one bad number, in each of its tensors in turn."""
    leaves, structure = tree_flatten(value)
    for number, leaf in enumerate(leaves):
        if is_float(leaf):
            changed = leaf.clone()
            changed.view(-1)[min(1, leaf.numel() - 1)] = bad
            yield tree_unflatten([*leaves[:number], changed, *leaves[number + 1 :]], structure)


def spoiled(example: Example, bad: float) -> Iterator[tuple[str, list[Any]]]:
    """Yield the arguments with one bad number in one of them, and its name."""
    for place, name in enumerate(example.names):
        for value in with_bad(example.arguments[place], bad):
            yield name, [*example.arguments[:place], value, *example.arguments[place + 1 :]]


@every_loss
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_is_not_finite(example: Example, bad: float) -> None:
    for name, arguments in spoiled(example, bad):
        with pytest.raises(ValueError, match=rf"^{name}\S*: expected finite numbers, found {bad} at"):
            example.call(*arguments)
    for name, setting in example.settings.items():
        for value in with_bad(setting, bad):
            with pytest.raises(ValueError, match=rf"^{name}\S*: expected .*found"):
                example.loss(*example.arguments, **{**example.settings, name: value})


@every_loss
def test_looks_at_no_values_under_transforms_or_when_told_not_to(example: Example) -> None:
    for _, arguments in spoiled(example, float("nan")):
        step = vmap(example.call)
        assert step(*tree_map(lambda leaf: leaf[None], tuple(arguments))).shape == (1,)
        with losses.values_unchecked():
            assert example.call(*arguments).shape == ()


def one_more(leaf: Tensor) -> Tensor:
    return torch.cat([leaf, leaf[..., :1]], -1)


@every_loss
def test_refuses_other_shapes(example: Example) -> None:
    first = "|".join(example.names if example.any_rank else example.names[:1])
    with pytest.raises(ValueError, match=rf"^({first})\S*: expected shape .*, found \("):
        example.call(*replaced(example, 0, lambda leaf: leaf.flatten()))
    for place, name in list(enumerate(example.names))[1:]:  # another number of classes, samples or channels
        if place not in example.free:
            with pytest.raises(ValueError, match=rf"^{name}\S*: expected shape .*, found \("):
                example.call(*replaced(example, place, one_more))


@every_loss
def test_refuses_another_number_of_samples(example: Example) -> None:
    for place, name in list(enumerate(example.names))[1:]:
        for dim in example.batch[place]:
            fewer = replaced(example, place, lambda leaf, dim=dim: leaf.narrow(dim, 0, 4))
            with pytest.raises(ValueError, match=rf"^{name}\S*: expected .*found"):
                example.call(*fewer)


@every_loss
def test_refuses_integers(example: Example) -> None:
    for place, name in enumerate(example.names):
        if floats(example.arguments[place]):
            with pytest.raises(ValueError, match=rf"^{name}\S*: expected floating-point numbers, found torch\.int64"):
                example.call(*replaced(example, place, lambda leaf: leaf.long()))


@every_loss
def test_refuses_an_empty_batch(example: Example) -> None:
    call, arguments = example.for_samples(lambda leaf, dim: leaf.narrow(dim, 0, 0))
    with pytest.raises(ValueError, match=r": expected .*found \(.*0"):
        call(*arguments)
