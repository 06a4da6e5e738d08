"""What training together pays for: multiplications, counted, against a limit."""

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedkd.learner import worth
from fedkd.learner.fit import predict
from fedkd.learner.model import fresh
from fedkd.learner.requests import Predict
from fedkd.learner.worth import multiplications, worth_it
from fedkd.models import ModelSpec, forget, skeleton
from fedkd.seeding import seed_everything


def test_multiplications_are_those_of_the_layers() -> None:
    spec = ModelSpec("mlp", (1, 8, 8), 10, 64)
    assert multiplications(spec) == 64 * 128 + 128 * 64 + 64 * 10
    assert multiplications(ModelSpec("linear", (5,), 3, 7)) == 5 * 7 + 7 * 3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_larger_steps_are_worth_it_on_a_gpu(device: str) -> None:
    spec, there = ModelSpec("mlp", (1, 8, 8), 10, 64), torch.device(device)
    limit = worth.LARGEST_STEP[device] / multiplications(spec)
    assert worth_it([spec], int(limit), there)
    assert not worth_it([spec], int(limit) + 1, there)
    assert not worth_it([spec, spec], int(limit), there)


@pytest.mark.parametrize("architecture", ["cnn-bn", "resnet-gn", "resnet18"])
def test_multiplications_are_half_of_what_torch_counts(architecture: str) -> None:
    spec = ModelSpec(architecture, (3, 16, 16), 10, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        skeleton(spec, training=False)(torch.zeros(1, 3, 16, 16))
    assert multiplications(spec) == counter.get_total_flops() / 2


def recurrent(input_shape: tuple[int, ...], feature_width: int) -> nn.Module:
    """For this layer torch has kernels of its own, which are no multiplications to its counter."""
    return Last(nn.LSTM(input_shape[1], feature_width, batch_first=True))


class Last(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        states: Tensor = self.layer(inputs)[0]
        return states[:, -1]


def attentive(input_shape: tuple[int, ...], feature_width: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(input_shape[1], 2, feature_width, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1], feature_width))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (recurrent, 6 * 4 * 8 * (4 + 8)),  # steps, gates, width, what goes in
        # Queries, keys, values and what they are projected to; scores and their sums; two layers; the last one.
        (attentive, 6 * 4 * 4 * 4 + 2 * 6 * 6 * 4 + 6 * 2 * 4 * 8 + 6 * 4 * 8),
    ],
)
def test_what_torch_computes_in_one_piece_is_counted(architecture: Any, expected: int) -> None:
    """And however often a model was built before: a process that only trains counts the same."""
    spec = ModelSpec(f"{__name__}:{architecture.__name__}", (6, 4), 3, feature_width=8)
    for _ in range(2):
        assert multiplications(spec) == expected + 8 * 3
        forget()


def test_to_count_does_not_import_a_compiler() -> None:
    """It would take a second, and 80 MB, in every process."""
    code = """
import sys
from fedkd.learner.worth import multiplications
from fedkd.models import ModelSpec
assert multiplications(ModelSpec("cnn", (1, 8, 8), 10, 64)) > 0
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Noisy(nn.Module):
    """Draws in evaluation as well, of all three generators."""

    def forward(self, inputs: Tensor) -> Tensor:
        noise = random.random() + np.random.random()  # noqa: S311
        return inputs.flatten(1)[:, :8] + torch.randn(8) + noise


def noisy(input_shape: tuple[int, ...], feature_width: int) -> nn.Module:
    return Noisy()


class Deep(nn.Module):
    """Leaves a layer out by chance, also in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, inputs: Tensor) -> Tensor:
        features = inputs.flatten(1)
        return (self.layer(features) if random.random() < 0.5 else features)[:, :8]  # noqa: S311


def deep(input_shape: tuple[int, ...], feature_width: int) -> nn.Module:
    return Deep()


def test_what_is_counted_does_not_depend_on_what_was_drawn_before() -> None:
    """All processes are to plan alike."""
    found = set()
    for seed in range(12):
        forget()
        seed_everything(seed)
        found.add(multiplications(ModelSpec(f"{__name__}:deep", (1, 4, 4), 3, feature_width=8)))
    assert len(found) == 1


def test_a_model_that_draws_does_not_notice_that_it_was_counted() -> None:
    """It is counted once in a process: bits would depend on how many processes there are."""
    model = fresh(ModelSpec(f"{__name__}:noisy", (1, 4, 4), 3, feature_width=8), 0, torch.empty(0))
    found = []
    for cold in (True, False):
        if cold:
            forget()
        seed_everything(5)
        found.append(predict(Predict(model, torch.zeros(2, 1, 4, 4))))
    assert torch.equal(*found)
