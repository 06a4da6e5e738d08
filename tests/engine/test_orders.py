"""One digest, however many workers there are, in whatever order units are given out, and wherever a run is cut off."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedkd.app.history import RoundRecord
from fedkd.app.state import MemoryStates
from fedkd.config import Experiment
from fedkd.engine import grid as grid_module
from fedkd.engine import simulate as simulate_module
from fedkd.engine.grid import SimulationGrid, Unit
from fedkd.engine.resume import resume
from fedkd.engine.simulate import simulate
from tests.engine.processes import one_ray

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # Ray's own
]

WORKERS = (1, 2, 4)
ROUNDS = 4
TIMES = 2
"""How often every number of workers before a cut meets every number after it: 18 runs under each plan."""
EXPERIMENT = Experiment(
    strategy="fedmd",
    rounds=ROUNDS,
    data={"public": 40, "validation": 1000, "test": 40},
    federation={"clients": 9, "architectures": ("mlp", "linear"), "feature_width": 8, "min_samples": 5},
)
Grids = dict[int, SimulationGrid[Any]]


class Cut(Exception):
    """Ends a run from outside."""


@pytest.fixture(scope="module", autouse=True)
def _one_ray_for_all() -> Iterator[None]:
    with one_ray(sum(WORKERS)):
        yield


@contextmanager
def open_grids(experiment: Experiment) -> Iterator[Grids]:
    """Open a grid for every number of workers, side by side: to start a worker takes longer than a run."""
    from fedkd.engine.ray import RayGrid

    with ExitStack() as stack:
        yield {n: stack.enter_context(RayGrid(experiment.changed(**{"engine.workers": n}))) for n in WORKERS}


def shuffler(source: random.Random, orders: set[tuple[str, ...]]) -> Callable[..., list[Unit]]:
    """Return what divides tasks into the units of the plan, in any order; note the order."""
    plain = grid_module.units

    def shuffled(messages: Mapping[str, Message], experiment: Experiment) -> list[Unit]:
        found = plain(messages, experiment)
        source.shuffle(found)
        orders.add(tuple(key for unit in found for _, key in unit))
        return found

    return shuffled


def digests(rounds: Sequence[Any]) -> list[str]:
    return [row["digest"] for row in rounds]


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_neither_workers_nor_orders_nor_restarts_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    experiment = EXPERIMENT.changed(**{"engine.plan": plan, "engine.cohort_size": 2})
    expected = simulate(experiment)
    source, orders = random.Random(plan), set[tuple[str, ...]]()  # noqa: S311 - no secret
    monkeypatch.setattr(grid_module, "units", shuffler(source, orders))

    with open_grids(experiment) as grids:

        @contextmanager
        def opened(asked: Experiment) -> Iterator[SimulationGrid[Any]]:
            grid = grids[asked.engine.workers]
            grid._states = MemoryStates()  # as a grid that was just opened
            with monkeypatch.context() as patch:
                patch.setattr(grid, "dismiss_workers", lambda: None)  # there are further runs for them
                yield grid

        monkeypatch.setattr(simulate_module, "open_grid", opened)
        for number, (before, after) in enumerate(list(product(WORKERS, WORKERS)) * TIMES):
            cut, folder = source.randrange(1, ROUNDS), tmp_path / f"run-{number}"

            def stop(record: RoundRecord, at: int = cut) -> None:
                if record.round == at:
                    raise Cut

            with pytest.raises(Cut):
                simulate(experiment.changed(**{"engine.workers": before}), out=folder, on_round=stop)
            result = resume(folder, workers=after)
            assert digests(result.rounds) == digests(expected.rounds), f"run {number}: {before} to {after} workers"
            assert result.digest == expected.digest
    assert len(orders) > len(WORKERS) ** 2 * TIMES, "they were not shuffled"
