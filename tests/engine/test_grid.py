"""What our grids share: units that depend on the experiment alone, and states that follow the server's versions."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from flwr.app import Error, Message, RecordDict

from fedkd.app.client import TRAIN, failure
from fedkd.app.wire import header_of, pack
from fedkd.config import Experiment
from fedkd.data.federation import build
from fedkd.engine.grid import SimulationGrid, Unit, units
from fedkd.errors import RunError
from fedkd.flower_internals import ensure_task_identity

SMALL: Mapping[str, Any] = {
    "strategy": "local",
    "data": {"public": 40, "validation": 800, "test": 40},
    "federation": {"clients": 12, "architectures": ("mlp", "cnn"), "views": ("image", "image@4", "image@4")},
}


class Echo(SimulationGrid[str]):
    """A grid whose clients note the state that they were given, and fail where they are told to."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.seen: list[list[tuple[str, str | None]]] = []
        self.failing: set[str] = set()

    def run_units(self, units: Sequence[Unit]) -> Iterator[tuple[str, Message, str | None]]:
        self.seen.append([(key, self.state_for(message, key)) for unit in units for message, key in unit])
        for unit in reversed(units):
            for message, key in unit:
                round_ = header_of(message.content)["round"]
                if key in self.failing:
                    yield key, Message(Error(code=0, reason="x"), reply_to=message), f"{key} must not be kept"
                else:
                    yield key, Message(pack({"who": key}), reply_to=message), f"{key} after {round_}"

    def read_state(self, state: str) -> Any:
        return {"read": state}

    def store_state(self, key: str, state: Any) -> str:
        return f"{key} stored {state['read']}"


def experiment_of(plan: str, size: int = 16) -> Experiment:
    return Experiment(**SMALL, engine={"plan": plan, "cohort_size": size})


def tasks(experiment: Experiment, chosen: Sequence[int], seed: int = 0) -> dict[str, Message]:
    ensure_task_identity()
    keys = list(build(experiment).holdings)
    message = Message(pack({"round": 1}), dst_node_id=1, message_type=TRAIN)
    found = [(keys[k], message) for k in chosen]
    random.Random(seed).shuffle(found)  # noqa: S311 - an order, no secret
    return dict(found)


def names(found: Sequence[Unit]) -> list[list[int]]:
    return [[int(key.removeprefix("client-")) for _, key in unit] for unit in found]


# --- units


def test_one_by_one_every_client_is_a_unit() -> None:
    experiment = experiment_of("one-by-one")

    assert names(units(tasks(experiment, [7, 2, 11]), experiment)) == [[2], [7], [11]]


@pytest.mark.parametrize(
    ("size", "chosen", "expected"),
    [  # client k has architecture k % 2 and view 0 if k % 3 == 0 else 1
        (16, range(12), [[0, 6], [1, 5, 7, 11], [2, 4, 8, 10], [3, 9]]),
        (3, range(12), [[0, 6], [1, 5], [2, 4], [3, 9], [7, 11], [8, 10]]),
        (2, [1, 5, 7, 8, 9], [[1], [5, 7], [8], [9]]),
        (16, [], []),
    ],
)
def test_cohorts_share_architecture_and_view(size: int, chosen: Sequence[int], expected: list[list[int]]) -> None:
    equal_shards = {"federation.partition": "iid", "data.public": 45}
    experiment = experiment_of("cohorts", size).changed(**equal_shards)

    assert names(units(tasks(experiment, chosen), experiment)) == expected


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_units_depend_on_participants_and_experiment_alone(plan: str) -> None:
    experiment = experiment_of(plan, 3)
    expected = names(units(tasks(experiment, range(12)), experiment))

    for seed in range(5):
        for workers in (0, 1, 7):
            other = experiment.changed(**{"engine.workers": workers, "name": "other"})
            assert names(units(tasks(other, range(12), seed), other)) == expected


# --- messages and replies


def messages(round_: int, versions: Mapping[int, int], type_: str = TRAIN) -> list[Message]:
    ensure_task_identity()
    return [
        Message(pack({"round": round_, "version": version}), dst_node_id=node, message_type=type_, group_id=str(round_))
        for node, version in versions.items()
    ]


@pytest.fixture
def grid() -> Echo:
    return Echo(experiment_of("one-by-one"))


def test_every_client_has_a_node(grid: Echo) -> None:
    assert list(grid.get_node_ids()) == list(range(1, 13))


def test_a_state_comes_back_with_the_version_that_the_message_names(grid: Echo) -> None:
    list(grid.send_and_receive(messages(1, {1: 0, 2: 0})))
    list(grid.send_and_receive(messages(2, {1: 1, 2: 0})))  # client-01's first reply did not count
    list(grid.send_and_receive(messages(3, {1: 2, 2: 2, 3: 0})))

    assert grid.seen == [
        [("client-00", None), ("client-01", None)],
        [("client-00", "client-00 after 1"), ("client-01", None)],
        [("client-00", "client-00 after 2"), ("client-01", "client-01 after 2"), ("client-02", None)],
    ]
    assert grid.state_of("client-00", 3) == {"read": "client-00 after 3"}
    assert grid.state_of("client-05", 0) == {}


def test_the_state_of_a_client_that_failed_is_not_kept(grid: Echo) -> None:
    list(grid.send_and_receive(messages(1, {1: 0})))
    grid.failing = {"client-00"}
    list(grid.send_and_receive(messages(2, {1: 1})))
    grid.failing = set()
    list(grid.send_and_receive(messages(3, {1: 1})))

    assert [seen[0][1] for seen in grid.seen] == [None, "client-00 after 1", "client-00 after 1"]
    with pytest.raises(KeyError):
        grid.state_of("client-00", 2)


def test_a_state_that_was_put_back_is_sent_out(grid: Echo) -> None:
    grid.put_state("client-01", 4, {"read": torch.ones(1)})

    assert grid.state_of("client-01", 4) == {"read": "client-01 stored tensor([1.])"}
    list(grid.send_and_receive(messages(5, {1: 0, 2: 4})))
    assert grid.seen == [[("client-00", None), ("client-01", "client-01 stored tensor([1.])")]]


def test_pushed_messages_are_pulled_once(grid: Echo) -> None:
    ids = list(grid.push_messages(messages(1, {1: 0, 4: 0})))

    assert len(set(ids)) == 2
    [first] = grid.pull_messages([ids[0], "unknown"])
    [second] = grid.pull_messages(ids)
    assert {header_of(m.content)["who"] for m in (first, second)} == {"client-00", "client-03"}
    assert list(grid.pull_messages(ids)) == []


def test_two_pushes_of_one_round_do_not_replace_each_other(grid: Echo) -> None:
    first = list(grid.push_messages(messages(1, {1: 0})))
    second = list(grid.push_messages(messages(1, {1: 0})))

    assert len(list(grid.pull_messages([*first, *second]))) == 2


def test_pushing_and_sending_give_the_same(grid: Echo) -> None:
    sent = list(grid.send_and_receive(messages(1, {1: 0, 2: 0})))
    other = Echo(experiment_of("one-by-one"))
    pulled = list(other.pull_messages(other.push_messages(messages(1, {1: 0, 2: 0}))))

    def said(replies: list[Message]) -> list[tuple[int, object]]:
        return [(reply.metadata.src_node_id, header_of(reply.content)) for reply in replies]

    assert said(sent) == said(pulled)
    assert grid.seen == other.seen


def test_a_foreign_app_can_make_messages(grid: Echo) -> None:
    message = grid.create_message(RecordDict(), "train", 3, "round 1", ttl=60)

    assert (message.metadata.dst_node_id, message.metadata.message_type) == (3, "train")
    assert (message.metadata.group_id, message.metadata.ttl) == ("round 1", 60)


def test_a_simulation_has_no_run_information(grid: Echo) -> None:
    with pytest.raises(RunError, match="no run information"):
        _ = grid.run


def test_a_failure_is_a_reply_with_the_reason() -> None:
    [message] = messages(4, {3: 0})

    reply = failure(message, "why")

    assert reply.has_error()
    assert reply.error.reason == "why"
    assert reply.metadata.src_node_id == 3
