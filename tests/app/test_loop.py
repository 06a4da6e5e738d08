"""The round loop: who is asked, when it is measured, and that no accident of the transport shows in the result."""

import logging
import math
import random
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from flwr.app import Message

from fedkd.app import loop
from fedkd.app.history import RoundRecord
from fedkd.app.loop import Run, run, wait_for_nodes
from fedkd.app.wire import header_of
from fedkd.config import Experiment
from fedkd.engine.local import LocalGrid
from fedkd.errors import RunError

SMALL: Mapping[str, Any] = {
    "rounds": 4,
    "data": {"public": 40, "validation": 1300, "test": 40},
    "federation": {"clients": 5, "architectures": ("mlp",), "feature_width": 8, "participation": 0.5, "min_samples": 5},
    "train": {"local_epochs": 1},
}


class Deployed(LocalGrid):
    """Like a deployment: nodes have random numbers and appear by and by, and replies come in any order."""

    def __init__(self, experiment: Experiment, seed: int, late: int = 0) -> None:
        super().__init__(experiment)
        self._random = random.Random(seed)  # noqa: S311 - an order, no secret
        names = list(self._keys.values())
        self._random.shuffle(names)
        self._keys = {self._random.getrandbits(63): name for name in names}
        self._late = late
        self.asked: list[tuple[str, int, frozenset[str]]] = []

    def get_node_ids(self) -> Iterable[int]:
        if self._late:
            self._late -= 1
            return []
        return self._random.sample(list(self._keys), len(self._keys))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        sent = list(messages)
        keys = frozenset(self._keys[message.metadata.dst_node_id] for message in sent)
        self.asked.append((sent[0].metadata.message_type, int(header_of(sent[0].content)["round"]), keys))  # type: ignore[arg-type]
        replies = list(super().send_and_receive(sent, timeout=timeout))
        self._random.shuffle(replies)
        return replies


def outcome(finished: Run) -> object:
    rounds = [{**record.to_json(), "seconds": 0} for record in finished.rounds]
    return rounds, [client.to_json() for client in finished.clients], {**finished.summary, "seconds": 0}


@pytest.mark.parametrize("strategy", ["fedmd", "fedavg", "fedproto"])
def test_node_numbers_and_the_order_of_replies_do_not_show(strategy: str) -> None:
    experiment = Experiment(
        strategy=strategy, **SMALL, strategies={"fedmd": {"transfer_epochs": 1, "revisit_epochs": 1}}
    )
    expected = outcome(run(LocalGrid(experiment), experiment))

    orders = set()
    for seed in range(10 if strategy == "fedmd" else 3):
        grid = Deployed(experiment, seed)
        assert outcome(run(grid, experiment)) == expected
        orders.add(tuple(grid._keys))

    assert len(orders) > 1


def asked(experiment: Experiment, seed: int = 0) -> list[tuple[str, int, frozenset[str]]]:
    grid = Deployed(experiment, seed)
    run(grid, experiment)
    return grid.asked


def participants(experiment: Experiment, seed: int = 0) -> list[frozenset[str]]:
    return [keys for type_, _, keys in asked(experiment, seed) if type_ == "train"]


def test_participants_are_drawn_by_the_experiments_seed_alone() -> None:
    experiment = Experiment(strategy="local", **SMALL).changed(**{"rounds": 8, "engine.evaluate_every": 0})

    drawn = participants(experiment)

    assert drawn == participants(experiment, seed=1)
    assert {len(keys) for keys in drawn} == {2}
    assert len(set(drawn)) > 2
    assert drawn != participants(experiment.changed(seed=1))
    record = run(LocalGrid(experiment), experiment).rounds
    assert [frozenset(entry.participants) for entry in record] == drawn
    assert [list(entry.participants) for entry in record] == [sorted(keys) for keys in drawn]


@pytest.mark.parametrize(("share", "count"), [(1.0, 5), (0.9, 4), (0.5, 2), (0.1, 1), (0.01, 1)])
def test_the_share_of_participants(share: float, count: int) -> None:
    experiment = Experiment(strategy="local", **SMALL).changed(
        **{"federation.participation": share, "rounds": 2, "engine.evaluate_every": 0}
    )

    assert [len(keys) for keys in participants(experiment)] == [count, count]


def test_everybody_is_evaluated_whoever_took_part() -> None:
    experiment = Experiment(strategy="local", **SMALL)

    found = [keys for type_, _, keys in asked(experiment) if type_ == "evaluate"]

    assert found == [frozenset(f"client-{k}" for k in range(5))] * 4


@pytest.mark.parametrize(
    ("every", "due"), [(0, [5]), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 5]), (5, [5]), (9, [5])]
)
def test_rounds_are_evaluated_as_often_as_asked_and_the_last_always(every: int, due: list[int]) -> None:
    experiment = Experiment(strategy="local", **SMALL).changed(**{"rounds": 5, "engine.evaluate_every": every})
    grid = Deployed(experiment, 0)

    finished = run(grid, experiment)

    assert [round_ for type_, round_, _ in grid.asked if type_ == "evaluate"] == due
    assert [record.round for record in finished.rounds if record.metrics is not None] == due


def test_how_often_it_is_evaluated_does_not_show_in_the_digest() -> None:
    experiment = Experiment(strategy="fedmd", **SMALL, strategies={"fedmd": {"transfer_epochs": 1}})

    digests = {
        run(LocalGrid(e), e).summary["digest"]
        for e in (experiment.changed(**{"engine.evaluate_every": every}) for every in (0, 1, 2))
    }

    assert len(digests) == 1


def test_a_client_that_never_took_part_has_no_version() -> None:
    experiment = Experiment(strategy="local", **SMALL).changed(**{"rounds": 1, "federation.participation": 0.2})

    finished = run(LocalGrid(experiment), experiment)

    assert finished.versions == dict.fromkeys(finished.rounds[0].participants, 1)
    assert len(finished.clients) == 5


def test_every_round_is_told_when_it_is_finished() -> None:
    experiment = Experiment(strategy="local", **SMALL)
    told: list[RoundRecord] = []
    grid = Deployed(experiment, 0)

    def on_round(record: RoundRecord) -> None:
        told.append(record)
        assert [round_ for _, round_, _ in grid.asked][-1] == record.round

    finished = run(grid, experiment, on_round)

    assert told == finished.rounds
    assert [record.round for record in told] == [1, 2, 3, 4]
    assert math.fsum(record.seconds for record in told) <= finished.summary["seconds"]


def test_a_strategy_without_client_models_asks_nobody() -> None:
    experiment = Experiment(strategy="public_only", **SMALL).changed(**{"data.public_labels": True, "rounds": 2})
    grid = Deployed(experiment, 0)

    finished = run(grid, experiment)

    assert [type_ for type_, _, _ in grid.asked] == ["query.hello"]
    assert finished.summary["metrics"]["server_global"]["accuracy"] > 0
    assert finished.rounds[0].digest != finished.rounds[1].digest


# --- waiting


def test_clients_that_appear_late_are_waited_for() -> None:
    experiment = Experiment(strategy="local", **SMALL).changed(rounds=1)

    finished = run(Deployed(experiment, 0, late=3), experiment)

    assert len(finished.clients) == 5


@pytest.mark.parametrize("present", [0, 4])
def test_clients_that_never_appear_end_the_run(present: int, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment(strategy="local", **SMALL).changed(**{"engine.join_timeout": 0.3})
    grid = LocalGrid(experiment)
    monkeypatch.setattr(grid, "get_node_ids", lambda: list(range(present)))
    started = loop.monotonic()

    with pytest.raises(RunError, match=rf"expected 5 clients within 0.3 s, found {present}; start the others\."):
        run(grid, experiment)

    assert 0.3 <= loop.monotonic() - started < 3


def test_more_nodes_than_clients_do_no_harm() -> None:
    experiment = Experiment(strategy="local", **SMALL)
    grid = LocalGrid(experiment)

    assert wait_for_nodes(grid, experiment.changed(**{"federation.clients": 3})) == [1, 2, 3, 4, 5]


def test_a_run_starts_without_clients_that_need_not_be_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = Experiment(strategy="local", **SMALL).changed(**{"engine.join_timeout": 0.2})
    grid = LocalGrid(experiment)
    monkeypatch.setattr(grid, "get_node_ids", lambda: [1, 2, 3])

    assert wait_for_nodes(grid, experiment.changed(**{"federation.min_clients": 3})) == [1, 2, 3]
    told = [message for message in caplog.messages if "clients" in message]
    assert told == ["3 of 5 clients appeared within 0.2 s; the run starts without the others"], "no level below is on"
    with pytest.raises(RunError, match=r"expected at least 4 of 5 clients within 0.2 s, found 3; start the others"):
        wait_for_nodes(grid, experiment.changed(**{"federation.min_clients": 4}))


def test_while_it_waits_it_says_once_how_many_are_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = Experiment(strategy="local", **SMALL)
    grid, looks = LocalGrid(experiment), [[], [], [1], [1], [1, 2, 3], [1, 2, 3, 4, 5]]
    monkeypatch.setattr(grid, "get_node_ids", lambda: looks.pop(0))
    monkeypatch.setattr(loop, "sleep", lambda seconds: None)

    with caplog.at_level(logging.INFO, "fedkd"):
        assert wait_for_nodes(grid, experiment) == [1, 2, 3, 4, 5]

    assert caplog.messages == [f"waiting for clients: {n} of 5 are there" for n in (0, 1, 3)]


def test_the_time_limit_of_the_experiment_reaches_the_grid() -> None:
    experiment = Experiment(strategy="local", **SMALL).changed(**{"rounds": 1, "engine.timeout": 7.0})
    limits: list[float | None] = []

    class Timed(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            limits.append(timeout)
            return super().send_and_receive(messages, timeout=timeout)

    run(Timed(experiment), experiment)

    assert limits == [7.0, 7.0, 7.0]
