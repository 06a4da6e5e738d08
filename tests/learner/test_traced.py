"""Traced functions: the same bits, and one trace for each key."""

import torch
from torch import Tensor
from torch.func import grad, vmap

from fedkd.learner import traced as module
from fedkd.learner.traced import TRACE_AFTER, traced


def loss(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    return (inputs @ weights["a"] + weights["b"]).tanh().square().sum()


def arguments(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    source = torch.Generator().manual_seed(seed)
    return (
        {"a": torch.randn(5, 3, 2, generator=source), "b": torch.randn(5, 2, generator=source)},
        torch.randn(5, 4, 3, generator=source),
    )


def test_the_bits_are_the_same_before_and_after_tracing() -> None:
    calls = []

    def function(*given: object) -> dict[str, Tensor]:
        calls.append(given)
        return vmap(grad(loss))(*given)  # type: ignore[no-any-return]

    for seed in range(TRACE_AFTER + 5):
        found = traced("bits", function, arguments(seed), alive=None)
        expected = vmap(grad(loss))(*arguments(seed))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(calls) == TRACE_AFTER + 1, "the last call is the one that was recorded"


def test_each_key_has_its_own_trace() -> None:
    for _ in range(TRACE_AFTER + 2):
        assert traced("one", lambda x: x + 1, (torch.ones(2),), alive=None).tolist() == [2, 2]
        assert traced("two", lambda x: x * 3, (torch.ones(2),), alive=None).tolist() == [3, 3]


def test_what_the_key_belongs_to_is_kept_alive_with_the_trace_and_old_traces_go() -> None:
    owner = object()
    for _ in range(TRACE_AFTER + 1):
        traced("kept", lambda x: x + 1, (torch.ones(1),), alive=owner)
    assert any(kept is owner for _, kept in module._kept.values())
    for number in range(module.MOST_KEPT):
        for _ in range(TRACE_AFTER + 1):
            traced(number, lambda x: x + 1, (torch.ones(1),), alive=None)
    assert len(module._kept) == module.MOST_KEPT
    assert not any(kept is owner for _, kept in module._kept.values())
