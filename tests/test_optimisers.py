"""Optimisers: torch's own, step by step, for one client and for a stack of them."""

import pytest
import torch
from torch import Tensor

from fedkd.optimisers import Optimiser, Tensors

STEPS = 20
SHAPES = {"weight": (4, 3), "bias": (3,), "scale": ()}
CASES = [
    (Optimiser("sgd", 0.1), torch.optim.SGD, {}),
    (Optimiser("sgd", 0.1, weight_decay=0.3), torch.optim.SGD, {"weight_decay": 0.3}),
    (Optimiser("sgd", 0.1, momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
    (
        Optimiser("sgd", 0.1, momentum=0.5, weight_decay=0.2),
        torch.optim.SGD,
        {"momentum": 0.5, "weight_decay": 0.2},
    ),
    (Optimiser("adam", 0.1), torch.optim.Adam, {}),
    (Optimiser("adam", 0.1, weight_decay=0.3), torch.optim.Adam, {"weight_decay": 0.3}),
    (
        Optimiser("adam", 0.1, betas=(0.7, 0.8), eps=1e-2),
        torch.optim.Adam,
        {"betas": (0.7, 0.8), "eps": 1e-2},
    ),
    (Optimiser("adamw", 0.1), torch.optim.AdamW, {"weight_decay": 0.0}),
    (Optimiser("adamw", 0.1, weight_decay=0.3), torch.optim.AdamW, {"weight_decay": 0.3}),
]
every_optimiser = pytest.mark.parametrize("optimiser", [case[0] for case in CASES], ids=str)


def start(seed: int) -> Tensors:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=source, dtype=torch.float64) for name, shape in SHAPES.items()}


def gradients(parameters: Tensors, step: int) -> Tensors:
    """Gradients that depend on the parameters, so that an early mistake grows; elementwise, so that stacks work."""
    return {name: p**3 - p + (-1) ** step for name, p in parameters.items()}


def run(optimiser: Optimiser, parameters: Tensors) -> Tensors:
    parameters, state = {name: p.clone() for name, p in parameters.items()}, optimiser.start(parameters)
    for step in range(1, STEPS + 1):
        optimiser.step(parameters, gradients(parameters, step), state, step)
    return parameters


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("optimiser", "reference", "settings"), CASES, ids=str)
def test_equals_torch(
    optimiser: Optimiser, reference: type[torch.optim.Optimizer], settings: dict[str, object]
) -> None:
    leaves = {name: p.clone().requires_grad_() for name, p in start(0).items()}
    theirs = reference(list(leaves.values()), lr=0.1, foreach=False, **settings)  # type: ignore[call-arg]
    for step in range(1, STEPS + 1):
        now = gradients({name: p.detach() for name, p in leaves.items()}, step)
        for name, leaf in leaves.items():
            leaf.grad = now[name]
        theirs.step()
    found = run(optimiser, start(0))
    for name, leaf in leaves.items():
        close(found[name], leaf.detach())
        assert (found[name] - start(0)[name]).abs().min() > 1e-3


@every_optimiser
def test_a_stack_equals_one_by_one(optimiser: Optimiser) -> None:
    starts = [start(seed) for seed in range(3)]
    together = run(optimiser, {name: torch.stack([one[name] for one in starts]) for name in SHAPES})
    for k, one in enumerate(starts):
        for name, expected in run(optimiser, one).items():
            close(together[name][k], expected)


@pytest.mark.parametrize(
    ("optimiser", "slots"),
    [
        (Optimiser("sgd"), []),
        (Optimiser("sgd", momentum=0.9), ["momentum"]),
        (Optimiser("adam"), ["first", "second"]),
        (Optimiser("adamw"), ["first", "second"]),
    ],
    ids=str,
)
def test_the_state_starts_at_zero_in_the_shape_of_the_parameters(optimiser: Optimiser, slots: list[str]) -> None:
    state = optimiser.start(start(0))
    assert sorted(state) == slots
    for tensors in state.values():
        assert {name: tuple(t.shape) for name, t in tensors.items()} == SHAPES
        assert all(t.dtype == torch.float64 and not t.any() for t in tensors.values())


@every_optimiser
def test_a_stack_takes_each_client_at_its_own_step(optimiser: Optimiser) -> None:
    starts, first = [start(seed) for seed in range(3)], [1, 5, 2]
    together = {name: torch.stack([one[name] for one in starts]) for name in SHAPES}
    state, steps = optimiser.start(together), torch.tensor(first, dtype=torch.float64)
    for number in range(4):
        optimiser.step(together, gradients(together, number), state, steps + number)
    for k, one in enumerate(starts):
        alone = optimiser.start(one)
        for number in range(4):
            optimiser.step(one, gradients(one, number), alone, first[k] + number)
        for name in SHAPES:
            close(together[name][k], one[name])


@every_optimiser
def test_a_step_changes_parameters_and_state_in_place_but_not_the_gradients(optimiser: Optimiser) -> None:
    parameters, state = start(0), optimiser.start(start(0))
    given = {step: gradients(start(0), step) for step in (1, 2, 3)}
    for step, now in given.items():
        optimiser.step(parameters, now, state, step)
    for name, p in start(0).items():
        assert not torch.equal(parameters[name], p)
        assert all(torch.equal(now[name], gradients(start(0), step)[name]) for step, now in given.items())
    assert all(t.abs().max() > 0 for tensors in state.values() for t in tensors.values())


def test_the_second_state_is_independent_of_the_first() -> None:
    optimiser = Optimiser("sgd", 0.1, momentum=0.9)
    first = run(optimiser, start(1))
    assert all(torch.equal(p, first[name]) for name, p in run(optimiser, start(1)).items())
