"""From names to models: reproducible starts, shared skeletons, and helpful refusals."""

import dataclasses
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedkd import models
from fedkd.errors import UserError
from fedkd.models import ModelSpec, registry
from fedkd.models.shapes import InputShape

every_architecture = pytest.mark.parametrize("name", models.names())
SHAPES = {"signal-cnn": (1, 8), "stroke": (2, 8), "vector": (8,), "fusion": ((1, 8, 8), (3, 8), (8,))}


def narrow(input_shape: tuple[int, ...], feature_width: int) -> nn.Module:
    """An architecture of a user's own."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(feature_width))


def wrong_width(input_shape: tuple[int, ...], feature_width: int) -> nn.Module:
    """An architecture that does not keep its promise."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(feature_width + 1))


def raising(error: Exception) -> Callable[..., nn.Module]:
    """An architecture that fails as it is built."""

    def build(input_shape: tuple[int, ...], feature_width: int) -> nn.Module:
        raise error

    return build


class Failing(nn.Module):
    """A feature part that is built, but fails at work."""

    def forward(self, inputs: Tensor) -> Tensor:
        raise RuntimeError("at\nwork")


def with_hook(width: int) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.LazyLinear(width))
    module(torch.zeros(1, 1, 4, 4))
    module[1].weight.register_hook(lambda gradient: 0.1 * gradient)
    return module


class Complex(nn.Module):
    """Turns its inputs by complex weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.turn, self.width = nn.Parameter(torch.ones(16, width, dtype=torch.complex64)), width

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.flatten(1).to(torch.complex64) @ self.turn).abs()


class Pair(nn.Module):
    """A feature part that gives no tensor."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, inputs


FAILING = {
    "no_shape": (
        raising(ValueError("signals\n of 100")),
        r"expected signals of 100, found input shape \(1, 4, 4\); take",
    ),
    "key": (
        raising(KeyError("layers")),
        r"expected a function of .* that returns a torch\.nn\.Module, but: KeyError: 'layers'\.",
    ),
    "silent": (raising(AssertionError()), "but: AssertionError\\."),
    "lines": (raising(RuntimeError("one\n  two.")), "but: RuntimeError: one two\\."),
    "other_arguments": (lambda shape: nn.Flatten(), "but: TypeError: .*2 were given"),
    "no_function": (3, "but: TypeError: 'int' object is not callable"),
    "no_module": (lambda *_: 3, "expected a torch.nn.Module, found int"),
    "hook": (lambda shape, width: with_hook(width), r"no hook on a parameter, found one on '1\.weight': weights come"),
    "complex": (lambda shape, width: Complex(width), r"real parameters, found torch\.complex64 in 'turn'; keep real"),
    "at_work": (lambda *_: Failing(), r"features of shape \(2, 5\) for two samples, but: RuntimeError: at work\."),
    "no_tensor": (lambda *_: Pair(), "for two samples, but: AttributeError: 'tuple' object"),
    "other_input": (lambda *_: nn.Linear(3, 5), "for two samples, but: RuntimeError: .*mat1 and mat2"),
}


@every_architecture
def test_the_same_seed_gives_the_same_start(name: str) -> None:
    spec = ModelSpec(name, SHAPES.get(name, (1, 8, 8)), classes=3)
    first, again, other = (models.initialise(spec, seed) for seed in (5, 5, 6))
    assert all(torch.equal(first[entry], again[entry]) for entry in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_the_global_generator_is_left_alone() -> None:
    spec = ModelSpec("cnn-bn", (1, 8, 8), classes=3, feature_width=9)
    before = torch.get_rng_state()
    models.initialise(spec, seed=5)
    models.skeleton(spec)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_start_has_parameters_and_buffers_of_the_wanted_type() -> None:
    spec = ModelSpec("cnn-bn", (1, 8, 8), classes=3)
    start, wide = models.initialise(spec, 1), models.initialise(spec, 1, torch.float64)
    assert set(start) == set(models.build(spec).state_dict())
    assert any(entry.endswith("running_var") for entry in start)
    for entry, value in start.items():
        counter = entry.endswith("num_batches_tracked")
        assert not value.requires_grad
        assert value.dtype == (torch.int64 if counter else torch.float32)
        assert torch.equal(wide[entry], value if counter else value.double())


def test_starts_share_no_memory() -> None:
    spec = ModelSpec("mlp", (1, 8, 8), classes=3)
    models.initialise(spec, 1)["head.bias"].fill_(9.0)
    assert not (models.initialise(spec, 1)["head.bias"] == 9.0).any()


def test_a_skeleton_is_shared_and_keeps_its_mode() -> None:
    spec = ModelSpec("mlp", (1, 8, 8), classes=3)
    assert models.skeleton(spec) is models.skeleton(dataclasses.replace(spec))
    assert models.skeleton(spec).training
    assert not models.skeleton(spec, training=False).training


def test_an_edited_architecture_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[__name__]
    spec = ModelSpec(f"{__name__}:edited", (4,), classes=3, feature_width=5)
    monkeypatch.setattr(module, "edited", lambda shape, width: nn.Linear(*shape, width), raising=False)
    assert isinstance(models.skeleton(spec).features, nn.Linear)
    monkeypatch.setattr(module, "edited", lambda shape, width: nn.Sequential(nn.Linear(*shape, width), nn.Tanh()))
    models.forget()
    assert isinstance(models.skeleton(spec).features, nn.Sequential)


def test_an_architecture_that_draws_from_numpy_starts_from_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(shape: tuple[int, ...], width: int) -> nn.Module:
        layer = nn.Linear(*shape, width)
        layer.bias.data.fill_(float(np.random.normal()) + random.random())  # noqa: S311 - no secret
        return layer

    monkeypatch.setattr(sys.modules[__name__], "edited", drawn, raising=False)
    spec = ModelSpec(f"{__name__}:edited", (4,), classes=3, feature_width=5)
    random.seed(1)
    numpys: Any = np.random.get_state
    before = random.getstate(), numpys()[1].tolist()
    first, again, other = (models.initialise(spec, seed)["features.bias"] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (random.getstate(), numpys()[1].tolist()) == before


def test_names_describe_every_architecture() -> None:
    assert {"cnn", "cnn-bn", "cnn-wide"} < set(models.names())
    assert all(line.endswith(".") and len(line) > 20 for line in models.names().values())


def test_refuses_an_unknown_name() -> None:
    with pytest.raises(UserError, match="unknown model 'cnn-bm': did you mean 'cnn-bn'"):
        models.build(ModelSpec("cnn-bm", (1, 8, 8), classes=3))


def test_refuses_sizes_below_one() -> None:
    with pytest.raises(UserError, match="classes: expected 1 or more, found 0"):
        ModelSpec("mlp", (1, 8, 8), classes=0)
    with pytest.raises(UserError, match=r"input_shape\[1\]: expected 1 or more, found 0"):
        ModelSpec("mlp", (1, 0, 8), classes=3)
    with pytest.raises(UserError, match=r"input_shape\[1\]\[0\]: expected 1 or more, found 0"):
        ModelSpec("mlp", ((1, 8), (0,)), classes=3)


CHANNEL = "; or, if it has one channel, store it as array[:, None]"


@pytest.mark.parametrize(
    ("name", "shape", "remedy"),
    [
        ("cnn", (1, 40), "take one that can: fusion, linear, mlp, mlp-deep, signal-cnn"),
        ("cnn", (2, 8), f"take one that can: fusion, linear, mlp, mlp-deep, signal-cnn, stroke{CHANNEL}"),
        ("cnn", (5,), "take one that can: fusion, linear, mlp, mlp-deep, vector"),
        ("signal-cnn", (40,), f"take one that can: fusion, linear, mlp, mlp-deep, vector{CHANNEL}"),
        ("vector", ((3, 40), (5,)), "take one that can: fusion, linear, mlp, mlp-deep"),
        ("fusion", ((3, 40), (2, 3, 8, 8)), "take one that can: linear, mlp, mlp-deep"),
    ],
)
def test_says_which_architectures_take_what_one_cannot(name: str, shape: InputShape, remedy: str) -> None:
    with pytest.raises(UserError, match=rf", found input shape .*; {re.escape(remedy)}\.$"):
        models.build(ModelSpec(name, shape, classes=3))
    for each in models.names():
        listed = re.search(rf"(: |, ){each}(,|;|$)", remedy) is not None
        if listed:
            models.build(ModelSpec(each, shape, classes=3))
        else:
            with pytest.raises(UserError):
                models.build(ModelSpec(each, shape, classes=3))


COMPOSITE = ((1, 8, 8), (3, 16), (5,))
TAKE_PARTS = {"fusion", "linear", "mlp", "mlp-deep"}


@every_architecture
def test_takes_several_parts_or_says_what_it_takes(name: str) -> None:
    spec = ModelSpec(name, COMPOSITE, classes=3, feature_width=5)
    assert spec.sample_shape == (64 + 48 + 5,)
    if name in TAKE_PARTS:
        assert models.build(spec)(torch.randn(2, 117)).shape == (2, 3)
    else:
        with pytest.raises(UserError, match=rf"model '{name}': expected \w+ .*, found input shape \(\(1, 8, 8\), "):
            models.build(spec)


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> str:
    """This file under a name that an object reference can import."""
    monkeypatch.setitem(sys.modules, "own_models", sys.modules[__name__])
    return "own_models"


def test_builds_an_architecture_of_ones_own(own_module: str) -> None:
    model = models.build(ModelSpec(f"{own_module}:narrow", (1, 4, 4), classes=3, feature_width=5))
    assert model.training
    assert model(torch.randn(2, 1, 4, 4)).shape == (2, 3)


def test_refuses_an_architecture_of_ones_own_that_does_not_fit(own_module: str) -> None:
    with pytest.raises(UserError, match=r"expected features of shape \(2, 5\) for two samples, found \(2, 6\)"):
        models.build(ModelSpec(f"{own_module}:wrong_width", (1, 4, 4), classes=3, feature_width=5))
    with pytest.raises(UserError, match=r"expected package\.module:function, but"):
        models.build(ModelSpec(f"{own_module}:missing", (1, 4, 4), classes=3))
    with pytest.raises(UserError, match=r"expected package\.module:function, but"):
        models.build(ModelSpec("no_such_package:missing", (1, 4, 4), classes=3))


@pytest.mark.parametrize("case", FAILING)
def test_whatever_goes_wrong_in_an_architecture_of_ones_own_is_told_in_one_line(
    own_module: str, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    function, message = FAILING[case]
    monkeypatch.setattr(sys.modules[own_module], case, function, raising=False)
    with pytest.raises(UserError, match=f"^model '{own_module}:{case}'.*{message}") as caught:
        models.build(ModelSpec(f"{own_module}:{case}", (1, 4, 4), classes=3, feature_width=5))
    assert "\n" not in str(caught.value)


def test_a_module_of_ones_own_that_cannot_be_imported_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_models.py").write_text("raise LookupError('first\\nsecond')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"^model 'broken_models:f': .* but: LookupError: first second\.$"):
        models.build(ModelSpec("broken_models:f", (1, 4, 4), classes=3))


def test_a_mistake_of_our_own_is_not_taken_for_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._ARCHITECTURES, "mlp", raising(KeyError("ours")))
    with pytest.raises(KeyError, match="ours"):
        models.build(ModelSpec("mlp", (1, 4, 4), classes=3))
