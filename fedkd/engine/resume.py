"""Go on with a run that was cut off, from its last whole checkpoint to the end that it would have had."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd import config
from fedkd.app.checkpoint import Checkpoint, read_newest
from fedkd.app.going_on import expect_same_settings, expect_unchanged, read_records
from fedkd.app.history import RoundRecord
from fedkd.app.loop import OnRound, Start
from fedkd.app.run_folder import (
    CHECKPOINTS,
    EXPERIMENT,
    FLOWER_LOG,
    GAINS,
    MANIFEST,
    REPORT,
    ROUNDS,
    SUMMARY,
    RunFolder,
    locked,
)
from fedkd.config import Experiment
from fedkd.engine.result import Result
from fedkd.engine.simulate import carry_out, check
from fedkd.errors import UserError


@dataclass(frozen=True)
class CutOff:
    """A run that was cut off and can be gone on with.

    Attributes:
        path: its folder.
        experiment: what it runs.
        checkpoint: the last whole one.
        records: one record per round up to there.
    """

    path: Path
    experiment: Experiment
    checkpoint: Checkpoint
    records: list[RoundRecord]


@dataclass(frozen=True)
class Finished:
    """A run whose rounds are done, though not all that follows them: the clients alone, or the report.

    Attributes:
        experiment: what it ran.
        summary: as in its ``summary.json``.
    """

    experiment: Experiment
    summary: dict[str, Any]


Overrides = Mapping[str, Any] | Sequence[str]
"""Settings that differ from the run's file: dotted keys with values, or ``key=value`` texts."""


def resume(path: Path | str, *, workers: int | None = None, on_round: OnRound = lambda record: None) -> Result:
    """Go on with the rounds of a run that was cut off; the end is, bit for bit, that of a run which was not.

    Only times differ: the summary's seconds are those of the earlier rounds and of this process.

    Args:
        path: the run folder.
        workers: Ray workers, if other than before: the result does not depend on them.
        on_round: called after every further round with its record.

    Raises:
        UserError: there is nothing to go on with, or something that decides the bits has changed.
        RunError: the run could not go on.
    """
    with opened(Path(path), {} if workers is None else {"engine.workers": workers}) as run:
        if isinstance(run, Finished):
            raise _complete(Path(path))
        return go_on(run, on_round)


@contextmanager
def opened(path: Path, overrides: Overrides = ()) -> Iterator[CutOff | Finished]:
    """Read a run that was cut off, and keep everybody else from going on with it meanwhile (see :func:`resume`).

    Args:
        path: the run folder.
        overrides: what is to be other than before; only settings that do not decide the bits may.
    """
    _expect_file(path, EXPERIMENT)
    with locked(path):
        yield _read_finished(path, overrides) if (path / SUMMARY).exists() else read_cut_off(path, overrides)


def _read_finished(path: Path, overrides: Overrides) -> Finished:
    file = path / SUMMARY
    if (path / REPORT).exists():
        raise _complete(path)
    experiment = config.load(path / EXPERIMENT, overrides)
    if overrides and (not experiment.alone or (path / GAINS).exists()):
        found = "found one that lacks but its report, for which no setting is used"
        raise UserError(f"{path}: expected a run that was cut off, {found}; leave the settings out.")
    expect = expect_unchanged if experiment.alone and not (path / GAINS).exists() else expect_same_settings
    expect(path, experiment, "start the run again")
    try:
        summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        lacking = sorted({"strategy", "digest", "metrics"} - summary.keys())
        cause = f"it lacks {', '.join(lacking)}" if lacking else ""
    except (ValueError, AttributeError) as error:
        cause = str(error)
    if cause:
        raise UserError(f"{file}: expected the summary of a run, but: {cause}; delete it, and go on again.")
    return Finished(experiment, summary)


def read_cut_off(path: Path, overrides: Overrides = ()) -> CutOff:
    """Read a run that was cut off, while somebody may still be at it; nothing is changed (see :func:`opened`)."""
    begun = config.load(path / EXPERIMENT)
    if begun.engine.name == "flower":
        raise UserError(f"{path}: expected a run on our own engine, found one on Flower's; start it again.")
    if begun.federation.partition == "own":
        raise _of_deployment(path)
    _expect_file(path, MANIFEST)
    experiment = config.load(path / EXPERIMENT, overrides)
    expect_same_settings(path, experiment, "start the run again")
    check(experiment)
    expect_unchanged(path, experiment, "start the run again")
    checkpoint = read_newest(path / CHECKPOINTS)
    if checkpoint.states is None:
        found = "found none in them: its clients keep their states"
        again = "start its ServerApp again, as before, with this folder as out"
        raise UserError(f"{path}: expected checkpoints with the clients' states, {found}; {again}.")
    return CutOff(path, experiment, checkpoint, read_records(path / ROUNDS, checkpoint.snapshot.record))


def go_on(run: CutOff, on_round: OnRound = lambda record: None) -> Result:
    """Go on, once, with a run that nobody else can go on with (see :func:`opened`)."""
    start = Start(run.checkpoint.snapshot, run.records)
    return carry_out(run.experiment, _reopened(run), on_round, start, run.checkpoint.states)


@contextmanager
def _reopened(run: CutOff) -> Iterator[RunFolder]:
    yield RunFolder.reopen(run.path, len(run.records))


def _complete(path: Path) -> UserError:
    return UserError(f"{path}: expected a run that was cut off, found a complete one; look at its report.html.")


def _expect_file(path: Path, name: str) -> None:
    if not os.path.isfile(path / name):  # not is_file, which fails for a name too long
        raise UserError(f"{path}: expected the folder of a run, found no {name} in it; check the path.")


def _of_deployment(path: Path) -> UserError:
    """Return what to do with the folder of a deployment's run: the server's, or what the operator's command wrote."""
    command = "fedkd deploy run EXPERIMENT --superlink HOST:PORT --root-certificates ca.crt --server-out"
    expected = f"{path}: expected a run of a simulation"
    if (path / FLOWER_LOG).is_file():
        found = "found the operator's folder of a deployment, whose run is on the SuperLink's machine"
        return UserError(f"{expected}, {found}; go on with: {command} FOLDER, the same as before.")
    found = "found one of a deployment, whose clients keep their states"
    return UserError(f"{expected}, {found}; go on with: {command} {shlex.quote(str(path.resolve()))}")
