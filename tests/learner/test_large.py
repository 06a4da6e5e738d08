"""Where a CPU has much to do for a batch, weights lie channels last: the same numbers, but for rounding."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedkd import models
from fedkd.data.samples import Samples
from fedkd.learner import fit as fit_module
from fedkd.learner import worth
from fedkd.learner.fit import fit, predict, rows_at_once
from fedkd.learner.model import Model, Network, fresh
from fedkd.learner.requests import Batch, Fit, Predict
from fedkd.models import ModelSpec
from fedkd.optimisers import Optimiser

CLASSES = 4
ARCHITECTURES = ("cnn", "cnn-bn", "resnet-gn")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on every step and every prediction is much to do."""
    monkeypatch.setitem(worth.LARGEST_STEP, "cpu", 0.0)
    monkeypatch.setattr(fit_module, "LARGEST_PREDICTION", 1.0)


def model(architecture: str, dtype: torch.dtype = torch.float64) -> Model:
    return fresh(ModelSpec(architecture, (2, 6, 6), CLASSES, feature_width=8), 0, torch.empty(0, dtype=dtype))


def request_of(architecture: str, objective: Any = None, dtype: torch.dtype = torch.float64, **changes: Any) -> Fit:
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(21, 2, 6, 6, generator=source, dtype=dtype)
    data = Samples(torch.arange(21), inputs, {"labels": torch.randint(0, CLASSES, (21,), generator=source)})
    sgd = Optimiser("sgd", 0.1, 0.9)
    return replace(
        Fit({"student": model(architecture, dtype)}, data, objective or supervised, 2, 8, sgd, seed=5), **changes
    )


def supervised(networks: Mapping[str, Network], batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
    return F.cross_entropy(networks["student"](batch.inputs), batch.labels)


class Spy:
    """The same objective, which notes how the first layer's output lies in memory."""

    def __init__(self) -> None:
        self.last: set[bool] = set()

    def __call__(self, networks: Mapping[str, Network], batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        _, seen = networks["student"].captured(batch.inputs, ["0"])
        self.last.add(seen["0"].is_contiguous(memory_format=torch.channels_last))
        return supervised(networks, batch, frozen)


def viewed(networks: Mapping[str, Network], batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
    _, seen = networks["student"].captured(batch.inputs, ["0"])
    return seen["0"].view(len(batch.inputs), -1).square().mean() + supervised(networks, batch, frozen)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_leads_to_the_same_weights(architecture: str, request: pytest.FixtureRequest) -> None:
    usual = fit(asked := request_of(architecture))["student"].tensors
    request.getfixturevalue("large")
    found = fit(asked)["student"].tensors
    assert list(found) == list(usual)
    for name, tensor in usual.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-11)
        assert found[name].is_contiguous()
    again = fit(asked)["student"].tensors
    assert all(torch.equal(tensor, again[name]) for name, tensor in found.items())


def test_small_steps_are_left_as_they_are() -> None:
    fit(request_of("cnn", spy := Spy()))
    assert spy.last == {False}


@pytest.mark.usefixtures("large")
def test_large_steps_lie_channels_last() -> None:
    fit(request_of("cnn", spy := Spy()))
    assert spy.last == {True}


@pytest.mark.usefixtures("large")
def test_reduced_precision_is_left_as_it_is() -> None:
    """In bfloat16 channels last takes up to 1.8 times as long on a CPU."""
    fit(request_of("cnn", spy := Spy(), dtype=torch.float32, autocast=True))
    assert spy.last == {False}


def test_an_objective_that_takes_a_view_gets_tensors_as_usual(request: pytest.FixtureRequest) -> None:
    usual = fit(asked := request_of("cnn", viewed))["student"].tensors
    request.getfixturevalue("large")
    found = fit(asked)["student"].tensors
    assert all(torch.equal(tensor, found[name]) for name, tensor in usual.items())


@pytest.mark.usefixtures("large")
@pytest.mark.usefixtures("large")
def test_who_has_too_little_memory_does_not_get_other_bits() -> None:
    calls = count()

    def short_at_first(networks: Mapping[str, Network], batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        if not next(calls):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return supervised(networks, batch, frozen)

    with pytest.raises(RuntimeError, match="can't allocate"):
        fit(request_of("cnn", short_at_first))


def test_another_mistake_stays_a_mistake() -> None:
    def wrong(networks: Mapping[str, Network], batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="my own"):
        fit(request_of("cnn", wrong))


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_predictions_are_those_of_the_module(architecture: str) -> None:
    given, inputs = model(architecture), torch.randn(150, 2, 6, 6, dtype=torch.float64)
    module = models.build(given.spec).double().eval()
    module.load_state_dict(dict(given.tensors))
    assert rows_at_once(given.spec, inputs.device) == 64
    torch.testing.assert_close(predict(Predict(given, inputs)), module(inputs).detach(), rtol=1e-10, atol=1e-12)


def test_a_prediction_takes_fewer_rows_of_what_is_more_to_do() -> None:
    cpu = torch.device("cpu")
    small, middle, big = (
        ModelSpec("mlp", (1, 28, 28), 10),
        ModelSpec("cnn", (1, 28, 28), 10),
        ModelSpec("resnet18", (3, 96, 96), 10),
    )
    multiplications = 16 * 9 * 28**2 + 32 * 16 * 9 * 14**2 + 512 * 64 + 64 * 10  # of a cnn, layer by layer
    assert rows_at_once(small, cpu) == 1024
    assert rows_at_once(middle, cpu) == int(2.5e8 / multiplications)
    assert rows_at_once(big, cpu) == 64
    assert rows_at_once(big, torch.device("cuda")) == 1024
