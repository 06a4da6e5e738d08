"""A small federation, and what the slow references in the tests of the methods have in common.

Every step takes the whole shard, so that a reference need not know the order of the samples; plain gradient descent in
float64 then agrees to rounding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from fedkd import Experiment, Result, seeding, simulate
from fedkd.config import parse
from fedkd.data import federation
from fedkd.data.samples import Samples

LEARNING_RATE = 0.1
ROUNDS = 2
EPOCHS = 2


def experiment(strategy: str, changes: Mapping[str, Any] | None = None) -> Experiment:
    """Return a small experiment with three clients; ``changes`` are dotted keys with values."""
    base = {
        "strategy": strategy,
        "rounds": ROUNDS,
        "data": {"test": 1500, "public": 40, "local_test": 0.0},
        "federation": {"clients": 3, "architectures": ["mlp"], "alpha": 1.0, "feature_width": 16},
        "train": {
            "optimizer": "sgd",
            "lr": LEARNING_RATE,
            "dtype": "float64",
            "batch_size": 4096,
            "local_epochs": EPOCHS,
        },
    }
    return parse(base, changes or {}, where="test")


def start(experiment: Experiment) -> Result:
    """Return the models that a run starts from: those after a round in which nothing is trained."""
    settings = experiment.strategies.get(experiment.strategy, {})
    still = {name: 0 if name.endswith("_epochs") else value for name, value in settings.items()}
    changes = {"rounds": 1, "train.local_epochs": 0, "strategies": {experiment.strategy: still}}
    return simulate(experiment.changed(**changes))


def descend(loss: Callable[[], Tensor], modules: Sequence[nn.Module], steps: int, adam: float | None = None) -> None:
    """Minimise a loss over all parameters of some modules, in training mode: SGD, or Adam at the given rate."""
    parameters = [p for module in modules for p in module.train().parameters()]
    optimiser = torch.optim.Adam(parameters, adam) if adam else torch.optim.SGD(parameters, LEARNING_RATE)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()


def outputs(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return a module's outputs in evaluation mode, outside of any gradient."""
    was_training = module.training
    with torch.no_grad():
        outputs: Tensor = module.eval()(inputs)
    module.train(was_training)
    return outputs


def average(modules: Sequence[nn.Module], counts: Sequence[int]) -> dict[str, Tensor]:
    """Return the mean of the modules' states, weighted by counts, by NumPy; integers are the first module's."""
    states = [module.state_dict() for module in modules]
    shares = np.array(counts) / sum(counts)
    return {
        name: torch.from_numpy(np.asarray(sum(w * s[name].numpy() for w, s in zip(shares, states, strict=True))))
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }


def apart(one: nn.Module, other: nn.Module) -> float:
    """Return the largest difference between two modules' parameters and buffers."""
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def held_out(asked: Experiment, key: str, samples: Samples, share: float) -> tuple[Samples, Samples]:
    """Return a client's samples to train on, and those that it holds out."""
    order = torch.randperm(len(samples), generator=seeding.generator(asked.seed, "held out", key))
    count = round(share * len(samples))
    return samples.take(order[count:].sort().values), samples.take(order[:count].sort().values)


def temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature of the smallest negative log-likelihood, by SciPy's search over its logarithm."""
    rows, truth = logits.numpy(), labels.numpy()

    def loss(log_temperature: float) -> float:
        scaled = rows / np.exp(log_temperature)
        return float((np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(truth)), truth]).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.01), np.log(100)), method="bounded", options={"xatol": 1e-10})
    return float(np.exp(found.x))


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """Return the tools."""
    tools = (experiment, start, descend, outputs, average, apart, held_out, temperature)
    return SimpleNamespace(rounds=ROUNDS, epochs=EPOCHS, **{tool.__name__: tool for tool in tools})


@pytest.fixture(autouse=True)
def _samples_that_may_be_descended_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """These tests descend by hand on whole shards, which the inference tensors of a federation do not allow."""
    federation._build.cache_clear()
    monkeypatch.setattr(torch, "inference_mode", nullcontext)
    yield
    federation._build.cache_clear()
