"""What holds for every loss, whatever its formula."""

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fedkd import losses
from fedkd.learner.vmap_rules import own_rules
from tests.losses.examples import EXAMPLES, NO_LOSSES, Example
from tests.losses.trees import each_float, floats, gradients, joined, split, with_gradient

every_loss = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())


def test_every_public_function_has_an_example() -> None:
    public = {value for value in vars(losses).values() if inspect.isfunction(value)} - {losses.values_unchecked}
    covered = {example.loss for example in EXAMPLES.values()}
    assert {function.__name__ for function in public - covered} == NO_LOSSES


@every_loss
def test_gradient_is_that_of_the_values(example: Example) -> None:
    trained, fixed = split(example, example.arguments)
    leaves, structure = tree_flatten(with_gradient(trained))
    assert torch.autograd.gradcheck(
        lambda *ours: example.call(*joined(example, tree_unflatten(ours, structure), fixed)), leaves
    )


@every_loss
def test_constants_get_no_gradient_and_arguments_stay(example: Example) -> None:
    arguments, before = with_gradient(example.arguments), copy.deepcopy(example.settings)
    example.call(*arguments).backward()
    trained, fixed = split(example, arguments)
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in floats(trained))
    assert all(leaf.grad is None for leaf in floats(fixed))
    for found, expected in ((arguments, example.arguments), (example.settings, before)):
        assert all(torch.equal(a, b) for a, b in zip(floats(found), floats(expected), strict=True))


@every_loss
def test_is_never_below_its_minimum(example: Example) -> None:
    for number in range(5):
        arguments = each_float(lambda leaf, number=number: leaf.roll(number, -1), example.arguments)
        assert example.call(*arguments).item() >= example.least


@every_loss
def test_order_of_samples_is_irrelevant(example: Example) -> None:
    order = torch.tensor([3, 0, 4, 2, 1])
    call, arguments = example.for_samples(lambda leaf, dim: leaf.index_select(dim, order))
    same = call(*arguments).item() == pytest.approx(example.call(*example.arguments).item(), rel=1e-10)
    assert same is example.permutable


def clients(example: Example) -> list[tuple[Any, ...]]:
    """Return the arguments of three clients, all different."""
    return [tuple(tree_map(lambda leaf, k=k: leaf.roll(k, 0), value) for value in example.arguments) for k in range(3)]


@every_loss
def test_vectorised_over_clients_equals_one_by_one(example: Example) -> None:
    trained, fixed = split(example, tree_map(lambda *leaves: torch.stack(leaves), *clients(example)))
    leaves, structure = tree_flatten(with_gradient(trained))

    def loss(ours: list[Tensor], others: Any) -> Tensor:
        return example.call(*joined(example, tree_unflatten(ours, structure), others))

    with own_rules():
        total = vmap(loss)(leaves, fixed).sum()
    together = tree_unflatten(torch.autograd.grad(total, leaves), structure)
    for number, arguments in enumerate(clients(example)):
        alone = grad(example.call, argnums=example.trained)(*arguments)
        for stacked, single in zip(floats(together), floats(alone), strict=True):
            torch.testing.assert_close(stacked[number], single, rtol=1e-10, atol=1e-13)
        for single, plain in zip(floats(alone), gradients(example, arguments), strict=True):
            torch.testing.assert_close(single, plain, rtol=1e-10, atol=1e-13)


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
        arguments, settings = (
            each_float(lambda leaf, dtype=dtype: leaf.to(dtype), tree) for tree in (example.arguments, example.settings)
        )
        loss = example.loss(*arguments, **settings)
        assert loss.dtype == torch.float32
        near = example.rounding * precision
        assert loss.item() == pytest.approx(exact.item(), rel=near, abs=1e-3 * near)
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


def on_either_side(example: Example, change: Callable[[Tensor], Tensor]) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments with all changed, with the trained ones, and with the constant ones."""
    trained, fixed = split(example, example.arguments)
    yield each_float(change, example.arguments)
    yield joined(example, each_float(change, trained), fixed)
    yield joined(example, trained, each_float(change, fixed))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_inputs_give_finite_numbers(example: Example, dtype: torch.dtype) -> None:
    for change in (torch.zeros_like, torch.ones_like, lambda leaf: leaf[:1].expand_as(leaf)):
        for arguments in on_either_side(example, lambda leaf, change=change: change(leaf).to(dtype)):
            assert example.call(*arguments).isfinite()
            assert all(part.abs().max() < example.steepest for part in gradients(example, arguments))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_inputs_give_finite_numbers(example: Example, dtype: torch.dtype) -> None:
    for arguments in on_either_side(example, lambda leaf: 1e4 * leaf.to(dtype)):
        assert example.call(*arguments).isfinite()
        assert all(part.isfinite().all() for part in gradients(example, arguments))


@every_loss
def test_a_single_sample_gives_finite_numbers(example: Example) -> None:
    call, arguments = example.for_samples(lambda leaf, dim: leaf.narrow(dim, 0, 1))
    assert call(*arguments).isfinite()
    assert all(part.isfinite().all() for part in gradients(example, arguments, call))
