"""What a SuperNode's own configuration says."""

from pathlib import Path
from typing import Any

import pytest

from fedkd.app.node import node_of
from fedkd.config import Experiment
from fedkd.data.own import Owner
from fedkd.errors import UserError

NEEDED = {"client": "hospital-a", "data": "mine.npz", "store": "states"}


def test_what_must_be_said() -> None:
    node = node_of(NEEDED, Experiment())
    assert (node.owner, node.store) == (Owner("hospital-a", "mine.npz"), Path("states"))
    assert node.experiment == Experiment()


def test_what_may_be_said() -> None:
    more = {"view": "image@4", "architecture": "mlp", "device": "cuda:1", "commons": "shared.npz", "partition-id": 3}
    node = node_of({**NEEDED, **more, "store": "~/states"}, Experiment())
    assert node.owner == Owner("hospital-a", "mine.npz", "image@4", "mlp")
    assert node.experiment == Experiment().changed(**{"train.device": "cuda:1", "data.name": "shared.npz"})
    assert node.store == Path.home() / "states"


@pytest.mark.parametrize("key", NEEDED)
def test_what_is_missing_is_named(key: str) -> None:
    for without in ({name: value for name, value in NEEDED.items() if name != key}, {**NEEDED, key: ""}):
        with pytest.raises(UserError, match=f"node config: expected the key '{key}', found none") as refused:
            node_of(without, Experiment())
        assert f'write {key} = "..." into node.toml' in str(refused.value)


@pytest.mark.parametrize("value", [7, True, 1.5])
def test_values_are_texts(value: Any) -> None:
    with pytest.raises(UserError, match="node config: data: expected a text in quotation marks"):
        node_of({**NEEDED, "data": value}, Experiment())


def test_a_key_that_is_not_ours_is_refused() -> None:
    assert node_of({**NEEDED, "num-partitions": 2}, Experiment()).owner.view is None
    with pytest.raises(UserError, match=r"node config: unknown key 'vieww': did you mean 'view'\?"):
        node_of({**NEEDED, "vieww": "image"}, Experiment())
