"""The few contacts with Flower's non-public modules."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid, InMemoryGrid

from fedkd.flower_internals import config_record, ensure_task_identity, is_server_error, is_simulation


@pytest.fixture
def no_identity() -> Iterator[None]:
    """A process without an identity; the one it had comes back afterwards."""
    before = {name: getattr(TaskIdentity, name) for name in ("_task_id", "_run_id", "_node_id")}
    for name in before:
        setattr(TaskIdentity, name, None)
    yield
    for name, value in before.items():
        setattr(TaskIdentity, name, value)


@pytest.mark.usefixtures("no_identity")
def test_sets_an_identity() -> None:
    ensure_task_identity(run_id=7, node_id=8)
    assert (TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id) == (0, 7, 8)


@pytest.mark.usefixtures("no_identity")
def test_leaves_a_given_identity_alone() -> None:
    TaskIdentity.run_id = 5
    ensure_task_identity(run_id=7, node_id=8)
    ensure_task_identity(run_id=9, node_id=9)
    assert (TaskIdentity.run_id, TaskIdentity.node_id) == (5, 8)


@pytest.mark.parametrize(("status", "failed"), [(500, True), (503, True), (401, False), (413, False)])
def test_a_superlink_that_failed_itself_is_told_from_one_that_refuses(status: int, failed: bool) -> None:
    answer = httpx.Response(status, request=httpx.Request("POST", "https://127.0.0.1"))
    with pytest.raises(httpx.HTTPStatusError) as raised:
        answer.raise_for_status()
    assert is_server_error(raised.value) == failed
    assert not is_server_error(ValueError("500"))


def test_a_simulations_grid_is_told_from_a_real_one() -> None:
    assert is_simulation(InMemoryGrid.__new__(InMemoryGrid))
    assert not is_simulation(HttpGrid.__new__(HttpGrid))


@pytest.mark.parametrize(
    "values",
    [
        {"text": "a", "number": 1, "real": 0.5, "truth": True, "bytes": b"1"},
        {"numbers": [1, 2], "texts": ["a"]},
        {"of NumPy": np.float64(0.5), "reals of NumPy": [np.float64(0.5), np.float64(1)]},
    ],
)
def test_a_record_without_flowers_checks_is_the_one_with_them(values: dict[str, Any]) -> None:
    found = config_record(values)
    assert type(found) is ConfigRecord
    assert found == ConfigRecord(values)
    assert found.deflate() == ConfigRecord(values).deflate()
    assert config_record({"none": []}) == ConfigRecord({"none": []})  # which Flower cannot send
    found["more"] = 1
    assert "more" not in values


@pytest.mark.parametrize("value", [None, {}, (1,), [None], [1, "a"], [[1]], 1j])
def test_a_record_refuses_what_does_not_travel(value: object) -> None:
    with pytest.raises(TypeError):
        config_record({"fit": 1, "unfit": value})
