"""Go on with a run that was cut off, from its last whole checkpoint to the end that it would have had."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd import config
from fedkd.app.checkpoint import Checkpoint, read_newest
from fedkd.app.history import RoundRecord
from fedkd.app.loop import OnRound, Start
from fedkd.app.run_folder import CHECKPOINTS, ROUNDS, RunFolder, locked, manifest, read_lines
from fedkd.config import Experiment
from fedkd.engine.result import Result
from fedkd.engine.simulate import carry_out, check
from fedkd.errors import UserError

DECISIVE = ("experiment", "code", "data", "public_set", "versions.torch", "versions.numpy", "cpu_capability")
"""What decides the bits and must be as it was, as keys of the manifest, in the order in which they are compared."""


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


def resume(path: Path | str, *, workers: int | None = None, on_round: OnRound = lambda record: None) -> Result:
    """Go on with a run that was cut off; the end is, bit for bit, that of a run which was not.

    Only times differ: the summary's seconds are those of the earlier rounds and of this process.

    Args:
        path: the run folder.
        workers: Ray workers, if other than before: the result does not depend on them.
        on_round: called after every further round with its record.

    Raises:
        UserError: there is nothing to go on with, or something that decides the bits has changed.
        RunError: the run could not go on.
    """
    return go_on(read_cut_off(Path(path), workers), on_round)


def read_cut_off(path: Path, workers: int | None = None) -> CutOff:
    """Read a run that was cut off; nothing is changed (see :func:`resume`)."""
    _expect_cut_off(path)
    experiment = config.load(path / "experiment.toml", {} if workers is None else {"engine.workers": workers})
    if experiment.engine.name == "flower":
        raise UserError(f"{path}: expected a run on our own engine, found one on Flower's; start it again.")
    check(experiment)
    _expect_unchanged(path, experiment)
    checkpoint = read_newest(path / CHECKPOINTS)
    return CutOff(path, experiment, checkpoint, _records(path / ROUNDS, checkpoint.snapshot.record))


def go_on(run: CutOff, on_round: OnRound = lambda record: None) -> Result:
    """Go on with a run (see :func:`resume`)."""
    start = Start(run.checkpoint.snapshot, run.records)
    return carry_out(run.experiment, _reopened(run), on_round, start, run.checkpoint.states)


@contextmanager
def _reopened(run: CutOff) -> Iterator[RunFolder]:
    with locked(run.path):
        yield RunFolder.reopen(run.path, len(run.records))


def _expect_cut_off(path: Path) -> None:
    missing = [name for name in ("experiment.toml", "manifest.json") if not (path / name).is_file()]
    if missing:
        raise UserError(f"{path}: expected the folder of a run, found no {missing[0]} in it; check the path.")
    if (path / "summary.json").exists():
        raise UserError(f"{path}: expected a run that was cut off, found a complete one; look at its report.html.")


def _expect_unchanged(path: Path, experiment: Experiment) -> None:
    file = path / "manifest.json"
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: expected the manifest of a run, but: {error}; start the run again.") from error
    now = manifest(experiment)
    for key in DECISIVE:
        then, found = _value(before, key), _value(now, key)
        if then != found:
            what = f"{file}: {key}: expected what the run began with, {then!r:.80}, found {found!r:.80}"
            raise UserError(f"{what}; restore it, or start the run again.")


def _value(values: Any, dotted: str) -> Any:  # noqa: ANN401 - JSON
    for key in dotted.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _records(path: Path, last: RoundRecord) -> list[RoundRecord]:
    """Return the records up to a round, the last of which a checkpoint holds as well."""
    try:
        records = [RoundRecord(**line) for line in read_lines(path)[: last.round]]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: expected one record per round, but: {error}; start the run again.") from error
    if [record.round for record in records] != list(range(1, last.round + 1)) or records[-1].digest != last.digest:
        found = f"found {len(records)} that do not lead to the checkpoint"
        raise UserError(f"{path}: expected the records of rounds 1 to {last.round}, {found}; start the run again.")
    return records
