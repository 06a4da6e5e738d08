"""Whatever a module changes of itself is noticed, and nothing else."""

import itertools
import logging
from collections import deque
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.models.as_built import AsBuilt


class Slotted:
    """Holds something without a dictionary."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def cooling() -> Any:
    """Return a function that keeps a temperature of its own."""
    held = {"scale": 1.0}

    def cool(factor: float) -> None:
        held["scale"] *= factor

    return cool


class Keeping(nn.Module):
    """Keeps something of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.count, self.scale, self.name = 0, 1.5, "keeping"
        self.row, self.table, self.names = [1], {"one": 1}, {"a"}
        self.array, self.tensor = np.zeros(2), torch.zeros(2)
        self.draws, self.numpys, self.pythons = torch.Generator().manual_seed(1), np.random.default_rng(1), Random(1)  # noqa: S311
        self.queue, self.space = deque([1]), SimpleNamespace(count=0)
        self.zero, self.fixed, self.spread = np.array(0.5), np.broadcast_to(1.0, (3,)), torch.ones(1).expand(3)
        self.nothing, self.parts, self.slope = float("nan"), [self.layer], nn.LeakyReLU(0.1)
        self.register_buffer("centre", None)
        self.norm = nn.BatchNorm1d(2)
        self.cooling, self.method, self.partial = cooling(), [1].append, partial(list.append, [1])
        self.log, self.width, self.rows, self.kind = logging.getLogger("own"), np.int64(3), range(3), np.dtype("f4")
        one, other = SimpleNamespace(), SimpleNamespace()
        one.other, other.other = other, one
        self.circle, self.deep = one, deep(40)


def deep(levels: int) -> list[Any]:
    """Return a list with very many ways through it."""
    return [1] if not levels else [inner := deep(levels - 1), inner]


def count(module: Any) -> None:
    module.count += 1


def cool(module: Any) -> None:
    module.scale *= 0.9


def append(module: Any) -> None:
    module.row.append(2)


def enter(module: Any) -> None:
    module.table["two"] = 2


def exchange(module: Any) -> None:
    module.table["one"] = 2


def add(module: Any) -> None:
    module.names.add("b")


def write(module: Any) -> None:
    module.array[0] = 1


def fill(module: Any) -> None:
    module.tensor.fill_(1)


def draw(module: Any) -> None:
    torch.rand(2, generator=module.draws)


def remember(module: Any) -> None:
    module.last = 3


def switch(module: Any) -> None:
    module.eval()


def forget(module: Any) -> None:
    del module.name


def draw_from_numpy(module: Any) -> None:
    module.numpys.random()


def draw_from_python(module: Any) -> None:
    module.pythons.random()


def push(module: Any) -> None:
    module.queue.append(2)


def count_elsewhere(module: Any) -> None:
    module.space.count += 1


def fill_buffer(module: Any) -> None:
    module.centre = torch.ones(2)


def register(module: Any) -> None:
    module.register_buffer("late", torch.ones(2))


def freeze(module: Any) -> None:
    module.norm.eval()


def anneal(module: Any) -> None:
    module.slope.negative_slope *= 0.5


def close_over(module: Any) -> None:
    module.cooling(0.5)


def call_a_method(module: Any) -> None:
    module.method(2)


def call_a_partial(module: Any) -> None:
    module.partial(2)


def hook(module: Any) -> None:
    module.register_forward_hook(lambda *_: None)


def change_behind_a_circle(module: Any) -> None:
    module.circle.other.count = 1


CHANGES = [count, cool, append, enter, exchange, add, write, fill, draw, remember, switch, forget, draw_from_numpy]
CHANGES += [draw_from_python, push, count_elsewhere, fill_buffer, register, freeze, anneal]
CHANGES += [close_over, call_a_method, call_a_partial, hook, change_behind_a_circle]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: Any) -> None:
    outer = nn.Sequential(Keeping())
    built = AsBuilt(outer)
    assert built.changed == ""
    change(outer[0])
    assert built.changed


def test_weights_and_what_is_only_read_are_none() -> None:
    module: Any = Keeping()
    built = AsBuilt(module)
    with torch.no_grad():
        module.layer.weight.fill_(3)
        module.norm(torch.ones(4, 2))
    assert float(module.zero) + float(module.spread.sum()) + float(module.fixed.sum()) == 6.5
    assert built.changed == ""


@pytest.mark.parametrize("kept", [[nn.Linear(2, 2)], itertools.count(), Slotted()])
def test_what_cannot_be_looked_at_is_taken_for_changed(kept: object) -> None:
    module: Any = nn.Linear(2, 2)
    assert AsBuilt(module).changed == ""
    module.kept = kept
    assert AsBuilt(module).changed == "Linear.kept"
