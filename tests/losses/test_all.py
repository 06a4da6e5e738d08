"""What holds for every loss on outputs, whatever its formula."""

import inspect
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fedkd import losses
from tests.losses.examples import EXAMPLES, NO_LOSSES, Example

every_loss = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())


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


def joined(example: Example, trained: list[Any], fixed: list[Any]) -> list[Any]:
    """Return the arguments in their order: the inverse of :func:`split`."""
    ours, others = iter(trained), iter(fixed)
    return [next(ours) if place in example.trained else next(others) for place in range(len(example.arguments))]


def gradients(example: Example, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Return the gradients of the trained tensors."""
    trained, fixed = split(example, arguments)
    trained = with_gradient(trained)
    loss = example.call(*joined(example, trained, fixed))
    assert loss.shape == ()
    return list(torch.autograd.grad(loss, floats(trained)))


def batched(example: Example, change: Callable[[Tensor, int], Tensor]) -> tuple[Any, ...]:
    """Return the arguments with a change along the dimension of the samples."""
    return tuple(
        value if dim is None else tree_map(lambda leaf, dim=dim: change(leaf, dim), value)
        for value, dim in zip(example.arguments, example.batch, strict=False)
    )


def test_every_public_function_has_an_example() -> None:
    modules = {example.loss.__module__ for example in EXAMPLES.values()}
    public = {
        name
        for module in modules
        for name, value in vars(sys.modules[module]).items()
        if inspect.isfunction(value) and value.__module__ == module and not name.startswith("_")
    }
    assert public == {example.loss.__name__ for example in EXAMPLES.values()} | NO_LOSSES
    assert all(hasattr(losses, name) for name in public)


@every_loss
def test_gradient_is_that_of_the_values(example: Example) -> None:
    trained, fixed = split(example, example.arguments)
    leaves, structure = tree_flatten(with_gradient(trained))
    assert torch.autograd.gradcheck(
        lambda *ours: example.call(*joined(example, tree_unflatten(ours, structure), fixed)), leaves
    )


@every_loss
def test_constants_get_no_gradient_and_arguments_stay(example: Example) -> None:
    arguments = with_gradient(example.arguments)
    example.call(*arguments).backward()
    trained, fixed = split(example, arguments)
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in floats(trained))
    assert all(leaf.grad is None for leaf in floats(fixed))
    for after, before in zip(floats(arguments), floats(example.arguments), strict=True):
        assert torch.equal(after, before)


@every_loss
def test_is_never_below_its_minimum(example: Example) -> None:
    for number in range(5):
        arguments = each_float(lambda leaf, number=number: leaf.roll(number, -1), example.arguments)
        assert example.call(*arguments).item() >= example.least


@every_loss
def test_order_of_samples_is_irrelevant(example: Example) -> None:
    order = torch.tensor([3, 0, 4, 2, 1])
    permuted = batched(example, lambda leaf, dim: leaf.index_select(dim, order))
    same = example.call(*permuted).item() == pytest.approx(example.call(*example.arguments).item(), rel=1e-10)
    assert same is example.permutable


def clients(example: Example) -> list[tuple[Any, ...]]:
    """Return the arguments of three clients, all different."""
    return [tuple(tree_map(lambda leaf, k=k: leaf.roll(k, 0), value) for value in example.arguments) for k in range(3)]


@every_loss
def test_vectorised_over_clients_equals_one_by_one(example: Example) -> None:
    step = vmap(grad(example.call, argnums=example.trained))
    together = step(*tree_map(lambda *leaves: torch.stack(leaves), *clients(example)))
    for number, arguments in enumerate(clients(example)):
        alone = grad(example.call, argnums=example.trained)(*arguments)
        for stacked, single in zip(floats(together), floats(alone), strict=True):
            torch.testing.assert_close(stacked[number], single, rtol=1e-10, atol=1e-13)
        for single, plain in zip(floats(alone), gradients(example, arguments), strict=True):
            torch.testing.assert_close(single, plain, rtol=1e-10, atol=1e-13)


@every_loss
def test_a_recorded_step_is_the_step(example: Example) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    stacked = tree_map(lambda *leaves: torch.stack(leaves), *clients(example))
    step = vmap(grad(example.call, argnums=example.trained))
    for found, expected in zip(floats(make_fx(step)(*stacked)(*stacked)), floats(step(*stacked)), strict=True):
        assert torch.equal(found, expected)


@every_loss
def test_survives_pickling_and_draws_nothing(example: Example) -> None:
    state = torch.get_rng_state()
    again = pickle.loads(pickle.dumps(example.call))  # noqa: S301 - our own
    assert torch.equal(again(*example.arguments), example.call(*example.arguments))
    assert torch.equal(torch.get_rng_state(), state)


@every_loss
def test_computes_in_single_precision_or_wider(example: Example) -> None:
    exact = example.call(*example.arguments)
    assert exact.dtype == torch.float64
    for dtype, precision in ((torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)):
        arguments = each_float(lambda leaf, dtype=dtype: leaf.to(dtype), example.arguments)
        loss = example.call(*arguments)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact.item(), rel=precision, abs=precision)
        assert all(part.isfinite().all() and part.dtype == dtype for part in gradients(example, arguments))


@every_loss
def test_autocast_changes_nothing(example: Example) -> None:
    arguments = each_float(lambda leaf: leaf.float(), example.arguments)
    expected = example.call(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = example.call(*arguments)
        trained, fixed = split(example, arguments)
        outputs = each_float(lambda leaf: leaf @ torch.eye(leaf.shape[-1]), trained)
        assert all(leaf.dtype == torch.bfloat16 for leaf in floats(outputs))
        assert example.call(*joined(example, outputs, fixed)).isfinite()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def degenerate(example: Example) -> Iterator[tuple[Any, ...]]:
    """Yield arguments of zeros, of ones, of equal rows, far out, and of a batch of one."""
    for change in (torch.zeros_like, torch.ones_like, lambda leaf: leaf[:1].expand_as(leaf), lambda leaf: 1e4 * leaf):
        yield each_float(change, example.arguments)
        yield tuple(joined(example, each_float(change, split(example, example.arguments)[0]), fixed_part(example)))
        yield tuple(joined(example, split(example, example.arguments)[0], each_float(change, fixed_part(example))))
    yield batched(example, lambda leaf, dim: leaf.narrow(dim, 0, 1))


def fixed_part(example: Example) -> list[Any]:
    return split(example, example.arguments)[1]


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_outputs_give_finite_numbers(example: Example, dtype: torch.dtype) -> None:
    for arguments in degenerate(example):
        arguments = each_float(lambda leaf: leaf.to(dtype), arguments)  # noqa: PLW2901
        assert example.call(*arguments).isfinite()
        assert all(part.isfinite().all() for part in gradients(example, arguments))


def spoiled(example: Example, bad: float) -> Iterator[tuple[str, list[Any]]]:
    """Yield the arguments with one bad number in one of them, and its name."""
    for place, name in enumerate(example.names):
        leaves, structure = tree_flatten(example.arguments[place])
        for number, leaf in enumerate(leaves):
            if is_float(leaf):
                changed = leaf.clone()
                changed.view(-1)[1] = bad
                value = tree_unflatten([*leaves[:number], changed, *leaves[number + 1 :]], structure)
                yield name, [*example.arguments[:place], value, *example.arguments[place + 1 :]]


@every_loss
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_is_not_finite(example: Example, bad: float) -> None:
    for name, arguments in spoiled(example, bad):
        with pytest.raises(ValueError, match=rf"^{name}\S*: expected finite numbers, found {bad} at"):
            example.call(*arguments)


@every_loss
def test_looks_at_no_values_under_transforms_or_when_told_not_to(example: Example) -> None:
    for _, arguments in spoiled(example, float("nan")):
        step = vmap(example.call)
        assert step(*tree_map(lambda leaf: leaf[None], arguments)).shape == (1,)
        with losses.values_unchecked():
            assert example.call(*arguments).shape == ()


def replaced(example: Example, place: int, change: Callable[[Tensor], Tensor]) -> list[Any]:
    """Return the arguments with one of them changed."""
    return [tree_map(change, value) if at == place else value for at, value in enumerate(example.arguments)]


@every_loss
def test_refuses_other_shapes(example: Example) -> None:
    with pytest.raises(ValueError, match=rf"^{example.names[0]}\S*: expected shape .*, found \("):
        example.call(*replaced(example, 0, lambda leaf: leaf.flatten()))
    for place, name in list(enumerate(example.names))[1:]:  # another number of classes, samples or channels
        with pytest.raises(ValueError, match=rf"^{name}\S*: expected shape .*, found \("):
            example.call(*replaced(example, place, lambda leaf: torch.cat([leaf, leaf[..., :1]], -1)))


@every_loss
def test_refuses_integers(example: Example) -> None:
    for place, name in enumerate(example.names):
        if floats(example.arguments[place]):
            with pytest.raises(ValueError, match=rf"^{name}\S*: expected floating-point numbers, found torch\.int64"):
                example.call(*replaced(example, place, lambda leaf: leaf.long()))


@every_loss
def test_refuses_an_empty_batch(example: Example) -> None:
    with pytest.raises(ValueError, match=r": expected .*found \(.*0"):
        example.call(*batched(example, lambda leaf, dim: leaf.narrow(dim, 0, 0)))
