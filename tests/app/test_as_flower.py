"""Our strategies in a foreign ServerApp: the same digest as in our own loop."""

from collections.abc import Mapping
from typing import Any

import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result as FlowerResult
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedkd import simulate
from fedkd.app.as_flower import as_flower
from fedkd.config import Experiment
from fedkd.engine.local import LocalGrid
from fedkd.errors import RunError, UserError

SMALL: Mapping[str, Any] = {
    "rounds": 3,
    "data": {"public": 40, "validation": 1300, "test": 40},
    "federation": {"clients": 4, "architectures": ("mlp",), "feature_width": 8, "participation": 0.75},
    "train": {"local_epochs": 1},
    "strategies": {"fedmd": {"transfer_epochs": 1}, "feddf": {"distil_epochs": 1}},
}


def in_a_foreign_app(experiment: Experiment, grid: Grid) -> tuple[FlowerStrategy, FlowerResult]:
    """Run a ServerApp that knows nothing of us but the strategy it was handed."""
    app = ServerApp()
    strategy = as_flower(experiment)
    results: list[FlowerResult] = []

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        results.append(strategy.start(grid, ArrayRecord(), num_rounds=experiment.rounds))

    app(grid, Context(0, 0, {}, RecordDict(), {}))
    return strategy, results[0]


@pytest.mark.parametrize("strategy", ["fedmd", "fedavg", "feddf", "fedproto", "local"])
@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_the_digest_is_that_of_our_own_loop(strategy: str, plan: str) -> None:
    experiment = Experiment(strategy=strategy, **SMALL, engine={"plan": plan})
    expected = simulate(experiment)

    adapter, result = in_a_foreign_app(experiment, LocalGrid(experiment))

    assert isinstance(adapter, FlowerStrategy)
    assert adapter._side.digest == expected.digest  # type: ignore[attr-defined]
    assert len({record["digest"] for record in expected.rounds}) == 3
    for round_, record in enumerate(expected.rounds, start=1):
        sent = result.train_metrics_clientapp[round_]
        assert sent["participants"] == len(record["participants"]) == 3
        assert sent["bytes-up"] == sum(record["bytes_up"].values())
        assert sent["bytes-down"] == sum(record["bytes_down"].values())
        measured = result.evaluate_metrics_clientapp[round_]
        flat = {
            f"{who}/{name}": value
            for who, scores in record["metrics"].items()
            if scores
            for name, value in scores.items()
        }
        assert dict(measured) == flat


def test_flowers_own_arrays_stay_as_they_are() -> None:
    experiment = Experiment(strategy="fedavg", **SMALL)

    _, result = in_a_foreign_app(experiment, LocalGrid(experiment))

    assert list(result.arrays) == []


def test_an_experiment_that_cannot_run_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="unknown strategy 'fedmb'"):
        as_flower(Experiment(strategy="fedmb", **SMALL))


def test_an_empty_grid_ends_the_foreign_run(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment(strategy="fedmd", **SMALL).changed(**{"engine.join_timeout": 0.2})
    grid = LocalGrid(experiment)
    monkeypatch.setattr(grid, "get_node_ids", list)

    with pytest.raises(RunError, match=r"expected 4 clients within 0\.2 s, found 0"):
        in_a_foreign_app(experiment, grid)


def test_clients_that_all_fail_end_the_foreign_run() -> None:
    experiment = Experiment(strategy="fedmd", **SMALL)

    class Silent(LocalGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
            return [m for m in super().send_and_receive(messages) if m.metadata.message_type != "train"]

    with pytest.raises(RunError, match="no client sent a usable reply"):
        in_a_foreign_app(experiment, Silent(experiment))
