"""Run an experiment on the engine that it names, and give back what came out."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd.app.client import client_models
from fedkd.app.history import RoundRecord
from fedkd.app.loop import OnRound, run
from fedkd.app.roster import card_of
from fedkd.app.run_folder import RunFolder
from fedkd.config import Experiment
from fedkd.data.federation import build
from fedkd.engine.grid import SimulationGrid
from fedkd.engine.result import Result, make_result
from fedkd.errors import UserError
from fedkd.models import skeleton
from fedkd.strategy.base import check_fits
from fedkd.strategy.registry import create


def simulate(experiment: Experiment, *, out: Path | None = None, on_round: OnRound = lambda record: None) -> Result:
    """Run an experiment.

    Args:
        experiment: what to run, and on which engine.
        out: folder for the results; nothing is written if absent.
        on_round: called after every round with its record.

    Returns:
        Summary, history and trained models.

    Raises:
        UserError: the experiment cannot be run.
        RunError: the run could not go on.

    Example:
        >>> from fedkd.config import Experiment
        >>> result = simulate(Experiment(strategy="local", rounds=1, engine={"evaluate_every": 0}))
        >>> result.summary["rounds"]
        1
    """
    check(experiment)
    if experiment.engine.name == "flower":
        from fedkd.engine.bundle import run_on_flower

        return run_on_flower(experiment, out, on_round)
    with _process_restored(), open_grid(experiment) as grid:
        folder = None if out is None else RunFolder(out, experiment)  # only now: what cannot start leaves nothing

        def after_round(record: RoundRecord) -> None:
            if folder is not None:
                folder.add_round(record)
            on_round(record)

        finished = run(grid, experiment, after_round)
        clients = client_models(experiment, {key: grid.state_of(key, n) for key, n in finished.versions.items()})
    if folder is not None:
        folder.finish(finished, clients)
    rounds, measured = ([record.to_json() for record in records] for records in (finished.rounds, finished.clients))
    return make_result(finished.summary, rounds, measured, finished.server_models, clients, out)


def check(experiment: Experiment) -> None:
    """Refuse a wrong name, a wrong setting or an unfit strategy before anything is written or started.

    Raises:
        UserError: the experiment cannot be run.
    """
    federation, strategy = build(experiment), create(experiment)
    check_fits(strategy, experiment, federation)
    try:
        torch.empty(0, device=experiment.train.device)
    except (RuntimeError, AssertionError) as error:
        what = f"train.device: expected a device of this machine, found {experiment.train.device!r}"
        raise UserError(f"{what}: {str(error).splitlines()[0]}") from error
    for card in (card_of(federation, key) for key in federation.holdings):
        for architecture in {*strategy.client_models(card).values(), strategy.server_model(card) or card.architecture}:
            skeleton(federation.model_spec(architecture, card.view))


@contextmanager
def open_grid(experiment: Experiment) -> Iterator[SimulationGrid[Any]]:
    """Open the grid that the experiment asks for, and stop what it started at the end."""
    if experiment.engine.workers == 0 and experiment.engine.address is None:
        from fedkd.engine.local import LocalGrid

        yield LocalGrid(experiment)
        return
    from fedkd.engine.ray import RayGrid  # the import of Ray takes seconds: only where it is used

    with RayGrid(experiment) as grid:
        yield grid


@contextmanager
def _process_restored() -> Iterator[None]:
    """Give a notebook back what a run in its process changes: torch's threads, and the global random generators."""
    threads, states = torch.get_num_threads(), (random.getstate(), np.random.get_state())
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
