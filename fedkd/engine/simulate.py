"""Run an experiment on the engine that it names, and give back what came out."""

import gc
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedkd import seeding
from fedkd.app.checkpoint import Checkpoints, Snapshot, is_due
from fedkd.app.client import client_models
from fedkd.app.loop import OnRound, Start, run
from fedkd.app.run_folder import CHECKPOINTS, RunFolder, made_and_locked
from fedkd.app.state import State
from fedkd.config import Experiment
from fedkd.data.federation import build
from fedkd.engine.grid import SimulationGrid
from fedkd.engine.result import Result, make_result
from fedkd.errors import RunError, UserError
from fedkd.models import forget
from fedkd.strategy.base import check_fits
from fedkd.strategy.registry import create
from fedkd.wording import printable, traceback_of


def simulate(
    experiment: Experiment, *, out: Path | str | None = None, on_round: OnRound = lambda record: None
) -> Result:
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
    if not isinstance(experiment, Experiment):
        remedy = "fedkd.config.load reads one from a file"
        raise UserError(f"simulate: expected an Experiment, found {type(experiment).__name__}; {remedy}.")
    check(experiment)
    path = None if out is None else Path(out)
    if experiment.engine.name == "flower":
        from fedkd.engine.bundle import run_on_flower

        return run_on_flower(experiment, path, on_round)
    return carry_out(experiment, nullcontext() if path is None else _new_folder(path, experiment), on_round)


def carry_out(
    experiment: Experiment,
    folder: AbstractContextManager[RunFolder | None],
    on_round: OnRound,
    start: Start | None = None,
    states: dict[str, State] | None = None,
) -> Result:
    """Run an experiment on our own grids, from the beginning or from where an earlier process came to.

    Args:
        experiment: what to run.
        folder: gives the folder for the results, if any are wanted; entered once the grid is open.
        on_round: called after every round, when its checkpoint is written, with its record.
        start: where to go on.
        states: the clients' states there, by client key; they are taken out, so that the grid alone keeps them.
    """
    # The folder comes last: what cannot start leaves nothing.
    with _process_restored(), open_grid(experiment) as grid, folder as opened:
        grid.recall(start.records if start else [])
        while states:
            key, state = states.popitem()
            grid.put_state(key, start.snapshot.versions[key] if start else 0, state)
            del state
        keep = _keeper(experiment, grid, opened, len(start.records) if start else 0)

        def after_round(snapshot: Snapshot) -> None:
            keep(snapshot)
            on_round(snapshot.record)

        finished = run(grid, experiment, on_snapshot=after_round, start=start, on_counted=grid.forget_before)
        grid.dismiss_workers()
        clients = client_models(experiment, dict(_last_states(grid, finished.versions)))
        if opened is not None:
            opened.finish(finished, clients)
    rounds, measured = ([record.to_json() for record in records] for records in (finished.rounds, finished.clients))
    where = None if opened is None else opened.path
    return make_result(finished.summary, rounds, measured, finished.server_models, clients, where)


def check(experiment: Experiment) -> None:
    """Refuse a wrong name, a wrong setting or an unfit strategy before anything is written or started.

    Raises:
        UserError: the experiment cannot be run.
    """
    forget()  # an architecture may have been edited since the last run in this process
    if experiment.federation.partition == "own":
        expected = "expected a partition that a simulation can deal, such as 'dirichlet'"
        found = "found 'own', where every client brings its samples"
        raise UserError(f"federation.partition: {expected}, {found}; change it, or deploy the experiment.")
    strategy, federation = create(experiment), build(experiment)  # what is cheap to refuse comes first
    try:
        check_fits(strategy, experiment, federation)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        what = f"strategy {experiment.strategy!r} failed when it was asked what it needs"
        raise RunError(f"{what}.\n{traceback_of(error)}") from error
    try:
        torch.zeros(1, device=experiment.train.device).cpu()
    except (RuntimeError, AssertionError) as error:
        what = f"train.device: expected a device of this machine, found {experiment.train.device!r}"
        said = printable(str(error).partition("\n")[0].partition(". ")[0], 200)
        raise UserError(f"{what}: {said}; set it to 'cpu', or to another one that is there.") from error


@contextmanager
def open_grid(experiment: Experiment) -> Iterator[SimulationGrid[Any]]:
    """Open the grid that the experiment asks for, and stop what it started at the end."""
    if experiment.engine.workers == 0:
        from fedkd.engine.local import LocalGrid

        yield LocalGrid(experiment)
        return
    from fedkd.engine.ray import RayGrid  # the import of Ray takes seconds: only where it is used

    with RayGrid(experiment) as grid:
        yield grid


def _last_states(grid: SimulationGrid[Any], versions: Mapping[str, int]) -> Iterator[tuple[str, State]]:
    """Yield each client's last state, which the grid then forgets: the states of many clients lie nowhere twice."""
    for key, version in versions.items():
        yield key, grid.state_of(key, version)
        grid.forget_before(key, version + 1)


@contextmanager
def _new_folder(path: Path, experiment: Experiment) -> Iterator[RunFolder]:
    with made_and_locked(path):
        yield RunFolder(path, experiment)


def _keeper(
    experiment: Experiment, grid: SimulationGrid[Any], folder: RunFolder | None, after: int
) -> Callable[[Snapshot], None]:
    """Return what writes a round's record, and its checkpoint if one is due, into the run folder."""
    if folder is None:
        return lambda snapshot: None
    every = experiment.engine.checkpoint_every
    checkpoints = Checkpoints(folder.path / CHECKPOINTS, after) if every else None

    def keep(snapshot: Snapshot) -> None:
        folder.add_round(snapshot.record)
        if checkpoints is not None and is_due(snapshot.record.round, every, experiment.rounds):
            checkpoints.save(snapshot, grid.state_of)

    return keep


@contextmanager
def _process_restored() -> Iterator[None]:
    """Give a notebook back what a run in its process changes: torch's threads, and the global random generators.

    Meanwhile Python's collector leaves alone what was there before, such as all modules: with thousands of clients it
    took a tenth of a round.
    """
    states = random.getstate(), np.random.get_state()
    gc.freeze()
    try:
        with torch.random.fork_rng(), seeding.arithmetic_restored():
            yield
    finally:
        gc.unfreeze()
        random.setstate(states[0])
        np.random.set_state(states[1])
