"""Requests: what a plain objective computes, and which requests are the same question."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedkd.data.samples import Samples
from fedkd.learner.fit import batches
from fedkd.learner.model import Model, Network, fresh
from fedkd.learner.requests import Batch, Fit, OnTarget, Predict, identity
from fedkd.models import ModelSpec
from fedkd.optimisers import Optimiser

SPEC = ModelSpec("linear", (4,), classes=3, feature_width=2)


def model(seed: int = 0, spec: ModelSpec = SPEC) -> Model:
    return fresh(spec, seed, torch.empty(0))


def samples(rows: int = 5, width: int = 4, **targets: Tensor) -> Samples:
    return Samples(torch.arange(rows), torch.ones(rows, width), targets or {"labels": torch.zeros(rows).long()})


def objective(networks: Any, batch: Batch, frozen: Any) -> Tensor:
    return F.cross_entropy(networks["student"](batch.inputs), batch.labels)


def fit(**changes: Any) -> Fit:
    request = Fit(
        {"student": model()}, samples(), objective, 1, 2, Optimiser(), 0, {"c": torch.ones(2)}, {"t": model()}
    )
    return replace(request, **changes)


# -- the objective of a plain fit


def test_on_target_is_the_loss_of_one_models_logits_and_one_target() -> None:
    networks = {name: Network(SPEC, model(seed).tensors) for seed, name in enumerate("ab")}
    batch = Batch(torch.randn(6, 4), {"labels": torch.arange(6) % 3, "teacher": torch.randn(6, 3)})
    found = OnTarget(F.mse_loss, "b", "teacher")(networks, batch, {})
    head, features = model(1).tensors, batch.inputs @ model(1).tensors["features.1.weight"].T
    logits = (features + head["features.1.bias"]) @ head["head.weight"].T + head["head.bias"]
    torch.testing.assert_close(found, ((logits - batch.targets["teacher"]) ** 2).mean())
    assert torch.equal(batch.labels, torch.arange(6) % 3)


# -- which functions are one function


def closure(value: Any) -> Callable[..., Any]:
    return lambda x: (x, value)


def with_keyword(value: float) -> Callable[..., Any]:
    scale = 2.0

    def function(x: float, *, weight: float = value) -> float:
        return x * weight * scale

    return function


def with_default(value: float) -> Callable[..., Any]:
    return lambda x, weight=value: x * weight


def plain_lambda() -> Callable[..., Any]:
    return lambda x: x + 1


def nested(value: float) -> Callable[..., Any]:
    inner = closure(value)
    return lambda x: (inner(x),)


def recursive() -> Callable[..., Any]:
    def function(x: int) -> int:
        return function(x - 1) if x else 0

    return function


def unfinished() -> Callable[..., Any]:
    def function() -> int:
        return later

    if not function:
        later = 1
    return function


@dataclass(frozen=True)
class Weighted:
    """An objective with a value of its own."""

    weight: float

    def __call__(self, x: float) -> float:
        return x * self.weight

    def method(self, x: float) -> float:
        return x * self.weight


ONE, TENSOR = Weighted(1.0), torch.ones(2)
OTHER_MODULE: dict[str, Any] = {"closure": closure}

EQUAL: dict[str, tuple[Any, Any]] = {
    "a function and itself": (objective, objective),
    "a method of one object": (ONE.method, ONE.method),
    "partials": (partial(objective, 1, weight=2.0), partial(objective, 1, weight=2.0)),
    "partials in another order": (partial(objective, a=1, b=2), partial(objective, b=2, a=1)),
    "partials of partials": (partial(partial(objective, 1), b=2), partial(objective, 1, b=2)),
    "partials of methods": (partial(ONE.method, x=[1, {"a": 2}]), partial(ONE.method, x=[1, {"a": 2}])),
    "closures": (closure(1.5), closure(1.5)),
    "closures over lists": (closure([1, 2]), closure([1, 2])),
    "closures over closures": (nested(1.0), nested(1.0)),
    "closures over one tensor": (closure(TENSOR), closure(TENSOR)),
    "closures with defaults": (with_default(1.0), with_default(1.0)),
    "closures with keywords": (with_keyword(1.0), with_keyword(1.0)),
    "lambdas of one line": (plain_lambda(), plain_lambda()),
    "callables that say they are equal": (Weighted(2.0), Weighted(2.0)),
    "plain fits": (OnTarget(closure(1), "student", "labels"), OnTarget(closure(1), "student", "labels")),
}
DIFFERENT: dict[str, tuple[Any, Any]] = {
    "two functions": (objective, closure),
    "methods of two objects": (ONE.method, Weighted(1.0).method),
    "two methods of one object": (ONE.method, ONE.__call__),
    "partials of other arguments": (partial(objective, 1), partial(objective, 2)),
    "partials of other keywords": (partial(objective, a=1), partial(objective, b=1)),
    "partials of other types": (partial(objective, 1), partial(objective, True)),
    "partials of other functions": (partial(objective, 1), partial(closure, 1)),
    "a partial and its function": (partial(objective), objective),
    "closures over other values": (closure(1.5), closure(2.5)),
    "closures over other types": (closure(1), closure(1.0)),
    "closures over other lists": (closure([1, 2]), closure([2, 1])),
    "closures over other closures": (nested(1.0), nested(2.0)),
    "closures over equal tensors": (closure(torch.ones(2)), closure(torch.ones(2))),
    "closures with other defaults": (with_default(1.0), with_default(2.0)),
    "closures with other keywords": (with_keyword(1.0), with_keyword(2.0)),
    "two lambdas": (lambda x: x + 1, lambda x: x + 2),
    "callables that say they differ": (Weighted(1.0), Weighted(2.0)),
    "other losses": (OnTarget(closure(1), "student", "labels"), OnTarget(closure(2), "student", "labels")),
    "other models": (OnTarget(objective, "student", "labels"), OnTarget(objective, "meme", "labels")),
    "other targets": (OnTarget(objective, "student", "labels"), OnTarget(objective, "student", "teacher")),
    "two recursive closures": (recursive(), recursive()),
    "two closures over a name without value": (unfinished(), unfinished()),
}


@pytest.mark.parametrize("case", EQUAL)
def test_functions_that_compute_the_same_are_one(case: str) -> None:
    first, second = EQUAL[case]
    assert identity(first) == identity(second)
    assert hash(identity(first)) == hash(identity(second))


@pytest.mark.parametrize("case", DIFFERENT)
def test_functions_that_may_differ_are_two(case: str) -> None:
    first, second = DIFFERENT[case]
    assert identity(first) != identity(second)
    assert identity(first) == identity(first)
    assert identity(second) == identity(second)


def test_the_same_code_in_another_module_is_another_function() -> None:
    source = compile("def make(k):\n    return lambda x: x * k * GLOBAL\n", "module", "exec")
    modules: list[dict[str, Any]] = [{"GLOBAL": 1.0}, {"GLOBAL": 2.0}]
    for module in modules:
        exec(source, module)  # noqa: S102 - stands for two files with the same text
    first, second = (module["make"](5) for module in modules)
    assert first(1) != second(1)
    assert identity(first) != identity(second)
    assert identity(first) == identity(modules[0]["make"](5))


@pytest.mark.parametrize("epochs", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 32])
def test_the_number_of_steps_is_that_of_the_batches(epochs: int, batch_size: int) -> None:
    for count in range(11):
        request = fit(samples=samples(count), epochs=epochs, batch_size=batch_size)
        assert request.steps == len(batches(count, epochs, batch_size, seed=0))


# -- which requests are one question


def test_fits_that_differ_in_values_only_have_one_key() -> None:
    rows = samples(9)
    same = fit(
        models={"student": model(7)}, samples=rows, seed=5, frozen={"c": torch.zeros(2)}, teachers={"t": model(1)}
    )
    assert same.key == fit().key
    assert hash(same.key) == hash(fit().key)


WIDE = ModelSpec("linear", (4,), classes=3, feature_width=9)


@pytest.mark.parametrize(
    "changes",
    [
        {"models": {"meme": model()}},
        {"models": {"student": model(spec=WIDE)}},
        {"models": {"student": model(), "meme": model()}},
        {"samples": samples(5, 6)},
        {"samples": samples(5, labels=torch.zeros(5))},
        {"samples": samples(5, labels=torch.zeros(5, 1).long())},
        {"samples": samples(5, others=torch.zeros(5).long())},
        {"samples": samples(5, labels=torch.zeros(5).long(), others=torch.zeros(5).long())},
        {"objective": closure(1)},
        {"epochs": 2},
        {"batch_size": 3},
        {"optimiser": Optimiser(lr=0.5)},
        {"frozen": {}},
        {"frozen": {"d": torch.ones(2)}},
        {"frozen": {"c": torch.ones(3)}},
        {"frozen": {"c": torch.ones(2).double()}},
        {"frozen": {"c": torch.ones(2), "d": torch.ones(2)}},
        {"teachers": {}},
        {"teachers": {"u": model()}},
        {"teachers": {"t": model(spec=WIDE)}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_fits_that_differ_in_anything_else_have_two_keys(changes: dict[str, Any]) -> None:
    assert fit(**changes).key != fit().key


def test_predictions_have_one_key_for_the_same_architecture_and_shape() -> None:
    request = Predict(model(0), torch.zeros(5, 4))
    assert request.key == Predict(model(1), torch.ones(5, 4)).key
    for other in (
        Predict(model(0), torch.zeros(6, 4)),
        Predict(model(0, WIDE), torch.zeros(5, 4)),
        Predict(model(0), torch.zeros(5, 4), "features"),
    ):
        assert other.key != request.key
