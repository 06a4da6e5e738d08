"""The few contacts with Flower's non-public modules."""

from collections.abc import Iterator

import httpx
import pytest
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid, InMemoryGrid

from fedkd.flower_internals import ensure_task_identity, is_server_error, is_simulation


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
