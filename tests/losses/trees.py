"""Arguments of losses are trees of tensors; what the tests do to them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from tests.losses.examples import Example


def is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def floats(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if is_float(leaf)]


def each_float(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Return the tree with its floating-point tensors changed."""
    return tree_map(lambda leaf: change(leaf) if is_float(leaf) else leaf, tree)


def with_gradient(tree: Any) -> Any:
    return each_float(lambda leaf: leaf.detach().clone().requires_grad_(), tree)


def split(example: Example, arguments: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
    """Return the arguments that receive the gradient, and the constant ones."""
    trained = [arguments[place] for place in example.trained]
    return trained, [value for place, value in enumerate(arguments) if place not in example.trained]


def joined(example: Example, trained: list[Any], fixed: list[Any]) -> tuple[Any, ...]:
    """Return the arguments in their order: the inverse of :func:`split`."""
    ours, others = iter(trained), iter(fixed)
    return tuple(next(ours if place in example.trained else others) for place in range(len(example.arguments)))


def gradients(example: Example, arguments: tuple[Any, ...], call: Callable[..., Tensor] | None = None) -> list[Tensor]:
    """Return the gradients of the trained tensors."""
    trained, fixed = split(example, arguments)
    trained = with_gradient(trained)
    loss = (call or example.call)(*joined(example, trained, fixed))
    assert loss.shape == ()
    return list(torch.autograd.grad(loss, floats(trained)))


def replaced(example: Example, place: int, change: Callable[[Tensor], Tensor]) -> list[Any]:
    """Return the arguments with one of them changed."""
    return [tree_map(change, value) if at == place else value for at, value in enumerate(example.arguments)]
