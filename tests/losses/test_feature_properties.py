"""What holds for every loss on features and relations."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tests.losses.feature_examples import EXAMPLES, Example, N

every_loss = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())


def floats(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def each_float(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the tree with its floating-point tensors changed."""
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, tree)


def with_gradient(tree: Any) -> Any:
    return each_float(tree, lambda leaf: leaf.clone().requires_grad_())


def gradient(example: Example, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Return the gradients of the student's tensors."""
    student = with_gradient(arguments[0])
    loss = example.call(student, *arguments[1:])
    assert loss.shape == ()
    return list(torch.autograd.grad(loss, floats(student), allow_unused=True, materialize_grads=True))


@every_loss
def test_gradient_is_that_of_the_values(example: Example) -> None:
    leaves, structure = tree_flatten(with_gradient(example.arguments[0]))
    rest = example.arguments[1:]
    assert torch.autograd.gradcheck(lambda *ours: example.call(tree_unflatten(ours, structure), *rest), leaves)


@every_loss
def test_teacher_gets_no_gradient_and_arguments_stay(example: Example) -> None:
    arguments = with_gradient(example.arguments)
    before = copy.deepcopy(example.arguments), copy.deepcopy(example.settings)
    example.call(*arguments).backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in floats(arguments[0]))
    assert all(leaf.grad is None for leaf in floats(arguments[1:]))
    for found, expected in ((arguments, before[0]), (example.settings, before[1])):
        assert all(torch.equal(a, b) for a, b in zip(floats(found), floats(expected), strict=True))


@every_loss
def test_vectorised_over_clients_equals_one_by_one(example: Example) -> None:
    def client(number: int) -> Any:
        return each_float(example.arguments, lambda leaf: leaf.roll(number, 0) + 0.1 * number * leaf)

    clients = [client(number) for number in range(3)]
    together = vmap(grad(example.call))(*tree_map(lambda *leaves: torch.stack(leaves), *clients))
    for number, arguments in enumerate(clients):
        alone = grad(example.call)(*arguments)
        for stacked, single in zip(floats(together), floats(alone), strict=True):
            torch.testing.assert_close(stacked[number], single, rtol=1e-10, atol=1e-13)
        for single, plain in zip(floats(alone), gradient(example, arguments), strict=True):
            torch.testing.assert_close(single, plain, rtol=1e-10, atol=1e-13)


@every_loss
def test_a_recorded_step_is_the_step(example: Example) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    stacked = tree_map(lambda leaf: torch.stack([leaf, leaf]), example.arguments)
    step = vmap(grad(example.call))
    for found, expected in zip(floats(make_fx(step)(*stacked)(*stacked)), floats(step(*stacked)), strict=True):
        assert torch.equal(found, expected)


@every_loss
def test_survives_pickling(example: Example) -> None:
    again = pickle.loads(pickle.dumps(example.call))  # noqa: S301 - our own
    assert torch.equal(again(*example.arguments), example.call(*example.arguments))


@every_loss
def test_single_and_half_precision(example: Example) -> None:
    exact = example.call(*example.arguments).item()
    for dtype, precision in ((torch.float32, 1e-4), (torch.bfloat16, 0.15), (torch.float16, 0.05)):
        arguments = each_float(example.arguments, lambda leaf, dtype=dtype: leaf.to(dtype))
        loss = example.call(*arguments)
        assert loss.item() == pytest.approx(exact, rel=precision, abs=1e-3 * precision)
        assert all(part.isfinite().all() and part.dtype == dtype for part in gradient(example, arguments))


@every_loss
def test_autocast_changes_nothing(example: Example) -> None:
    arguments = each_float(example.arguments, lambda leaf: leaf.float())
    expected = example.call(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = example.call(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@every_loss
def test_order_of_samples_is_irrelevant(example: Example) -> None:
    order = torch.tensor([3, 0, 4, 2, 1])
    arguments = list(example.arguments)
    for place in example.per_sample:
        arguments[place] = tree_map(lambda leaf: leaf[order], arguments[place])
    same = example.call(*arguments).item() == pytest.approx(example.call(*example.arguments).item(), rel=1e-10)
    assert same is example.permutable


def degenerate(example: Example) -> Iterator[tuple[Any, ...]]:
    """Yield arguments of zeros, of equal rows, of equal entries, huge ones, and the student's own as the teacher's."""
    ours, *rest = example.arguments
    yield each_float(ours, torch.zeros_like), *rest
    yield each_float(ours, lambda leaf: leaf[:1].expand_as(leaf)), *rest
    yield each_float(ours, torch.ones_like), *rest
    yield each_float(ours, lambda leaf: 100 * leaf.float()), *each_float(rest, lambda leaf: leaf.float())
    teacher, *further = rest
    for change in (torch.zeros_like, torch.ones_like, lambda leaf: leaf[:1].expand_as(leaf)):
        changed = each_float(teacher, change)
        yield ours, changed, *further
        yield each_float(ours, change), changed, *further


@every_loss
def test_degenerate_features_give_finite_numbers(example: Example) -> None:
    for arguments in degenerate(example):
        assert example.call(*arguments).isfinite()
        for part in gradient(example, arguments):
            assert part.isfinite().all()
            assert part.abs().max() < 1e6


@every_loss
def test_a_single_sample_gives_finite_numbers(example: Example) -> None:
    arguments = list(example.arguments)
    for place in example.per_sample:
        arguments[place] = tree_map(lambda leaf: leaf[:1], arguments[place])
    if len(arguments) > len(example.per_sample) and arguments[-1].dtype == torch.bool:
        arguments[-1] = arguments[-1][:1, :1]
    cut = {"contrast", "variance"}
    settings = {
        name: value[:1] if name in cut and len(value) == N else value for name, value in example.settings.items()
    }
    single = Example(example.loss, tuple(arguments), settings)
    assert single.call(*arguments).isfinite()
    assert all(part.isfinite().all() for part in gradient(single, tuple(arguments)))


@every_loss
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_what_is_not_finite(example: Example, bad: float) -> None:
    leaves, structure = tree_flatten(example.arguments)
    for place, leaf in enumerate(leaves):
        if leaf.is_floating_point():
            spoiled = leaf.clone()
            spoiled.view(-1)[1] = bad
            with pytest.raises(ValueError, match=r"^(student|teacher|margin|mean|anchor|positive|negative).*finite"):
                example.call(*tree_unflatten([*leaves[:place], spoiled, *leaves[place + 1 :]], structure))


@every_loss
def test_refuses_another_number_of_samples_and_integers(example: Example) -> None:
    ours, *rest = example.arguments
    with pytest.raises(ValueError, match=r": expected .*found"):
        example.call(each_float(ours, lambda leaf: leaf[:-1]), *rest)
    with pytest.raises(ValueError, match=r": expected floating-point numbers, found torch\.int64"):
        example.call(each_float(ours, lambda leaf: leaf.long()), *rest)
