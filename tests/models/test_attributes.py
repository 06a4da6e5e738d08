"""What a module keeps beside its tensors is as it was built, whatever has become of it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.models.attributes import attributes_of, changed, restore


class Keeping(nn.Module):
    """Keeps something of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.count, self.scale, self.name = 0, 1.5, "keeping"
        self.row, self.table, self.names = [1], {"one": 1}, {"a"}
        self.array, self.tensor = np.zeros(2), torch.zeros(2)
        self.draws = torch.Generator().manual_seed(1)


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


CHANGES = [count, cool, append, enter, exchange, add, write, fill, draw, remember, switch]


def kept_in(module: Any) -> list[Any]:
    values = module.count, module.scale, module.name, list(module.row), dict(module.table), set(module.names)
    return [*values, module.array.tolist(), module.tensor.tolist(), module.draws.initial_seed(), module.training]


@pytest.mark.parametrize("change", [*CHANGES, forget])
def test_every_change_is_undone(change: Any) -> None:
    module = Keeping()
    before, built, first = kept_in(module), attributes_of(module), torch.rand(2, generator=module.draws.clone_state())

    for _ in range(2):
        change(module)
        restore(built)
        assert kept_in(module) == before
        assert not hasattr(module, "last")
        assert torch.equal(torch.rand(2, generator=module.draws.clone_state()), first)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_and_nothing_else(change: Any) -> None:
    outer = nn.Sequential(Keeping())
    built = attributes_of(outer)
    assert changed(built) == ""
    change(outer[0])
    assert changed(built).startswith("Keeping.")
    restore(built)
    assert changed(built) == ""


def test_weights_are_none_of_them() -> None:
    module = Keeping()
    built = attributes_of(module)
    with torch.no_grad():
        module.layer.weight.fill_(3)
    assert changed(built) == ""
    restore(built)
    assert torch.equal(module.layer.weight, torch.full((2, 2), 3.0))
