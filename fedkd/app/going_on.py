"""What a process needs to go on with a run that an earlier one began: its folder, as the earlier one left it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.app.checkpoint import generations, read_newest
from fedkd.app.history import RoundRecord
from fedkd.app.loop import Start
from fedkd.app.run_folder import (
    CHECKPOINTS,
    EXPERIMENT,
    FLOWER_LOG,
    MANIFEST,
    ROUNDS,
    SUMMARY,
    RunFolder,
    decisive_settings,
    made_and_locked,
    manifest,
    read_lines,
)
from fedkd.app.told import TOLD
from fedkd.config import Experiment
from fedkd.errors import UserError
from fedkd.strategy.registry import complete
from fedkd.wording import where_they_differ

DECISIVE = ("code", "experiment", "data", "public_set", "versions.torch", "versions.numpy", "cpu_capability")
"""What decides the bits and must be as it was, as keys of the manifest, in the order in which they are compared."""


@dataclass(frozen=True)
class Opened:
    """A run folder that nobody else writes into.

    Attributes:
        folder: the folder.
        start: where an earlier process came to; None for the beginning.
        complete: whether there is nothing left to do.
    """

    folder: RunFolder
    start: Start | None = None
    complete: bool = False


@contextmanager
def opened(path: Path, experiment: Experiment) -> Iterator[Opened]:
    """Open the folder of a run whose clients keep their own states: a new one, or that of an earlier process.

    Raises:
        UserError: another process is at it, or it is the folder of something else.
    """
    with made_and_locked(path):
        if not (path / MANIFEST).is_file():
            _forget_hardly_begun(path, experiment)
            yield Opened(RunFolder(path, experiment))
            return
        expect_unchanged(path, experiment, "name another folder as out (--server-out)")
        if (path / SUMMARY).exists():
            TOLD.info("complete, nothing is left to do: %s", path)
            yield Opened(RunFolder.of(path), complete=True)
            return
        start = _start(path)
        done = len(start.records) if start else 0
        TOLD.info("going on after round %d: %s", done, path)
        yield Opened(RunFolder.reopen(path, done), start)


def expect_unchanged(path: Path, experiment: Experiment, remedy: str) -> None:
    """Refuse to go on with a run if anything that decides its bits is not as it was.

    Args:
        path: the run folder.
        experiment: what is to be run now.
        remedy: what else to do about it than to restore what was, as the end of the message.

    Raises:
        UserError: names the first that differs.
    """
    expect_same_settings(path, experiment, remedy)
    before, now = _manifest(path, remedy), manifest(experiment)
    for key in DECISIVE:
        then, found = _value(before, key), _value(now, key)
        if then != found and key == "experiment" and then is not None:  # a setting that was not there before
            what = f"{path / EXPERIMENT}: expected the settings that the run began with, found others"
            raise UserError(f"{what}; undo what was changed there, or {remedy}.")
        if then != found:
            what = f"{key} (of fedkd or of the strategy)" if key == "code" else key
            raise _other(f"{path / MANIFEST}: {what}", then, found, f"restore it, or {remedy}")


def expect_same_settings(path: Path, experiment: Experiment, remedy: str) -> None:
    """Refuse an experiment if a setting that decides the bits is another one than in a run's folder.

    Args:
        path: the run folder.
        experiment: what is to be run now.
        remedy: what else to do about it than to set it as it was.

    Raises:
        UserError: names the first that differs.
    """
    then, now = _value(_manifest(path, remedy), "settings"), decisive_settings(experiment)
    for key, value in then.items() if isinstance(then, dict) else ():
        if now.get(key) != value:
            raise _other(f"{path / EXPERIMENT}: {key}", value, now.get(key), f"set it so, or {remedy}")


def _manifest(path: Path, remedy: str) -> Any:  # noqa: ANN401 - JSON
    file = path / MANIFEST
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: expected the manifest of a run, but: {error}; restore it, or {remedy}.") from error


def _other(where: str, then: object, now: object, remedy: str) -> UserError:
    begun, given = where_they_differ(repr(then), repr(now))
    return UserError(f"{where}: expected what the run began with, {begun}, found {given}; {remedy}.")


def read_records(path: Path, last: RoundRecord) -> list[RoundRecord]:
    """Return the records up to a round, the last of which a checkpoint holds as well.

    Raises:
        UserError: they are others.
    """
    try:
        records = [RoundRecord(**line) for line in read_lines(path, last.round)]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: expected one record per round, but: {error}; start the run again.") from error
    if [record.round for record in records] != list(range(1, last.round + 1)) or records[-1].digest != last.digest:
        found = f"found {len(records)} that do not lead to the checkpoint"
        raise UserError(f"{path}: expected the records of rounds 1 to {last.round}, {found}; start the run again.")
    return records


def _start(path: Path) -> Start | None:
    if not generations(path / CHECKPOINTS):
        return None
    checkpoint = read_newest(path / CHECKPOINTS)
    if checkpoint.states is not None:
        found = "found one whose checkpoints hold them"
        raise UserError(f"{path}: expected a run whose clients keep their states, {found}; go on by: fedkd resume.")
    return Start(checkpoint.snapshot, read_records(path / ROUNDS, checkpoint.snapshot.record))


def _forget_hardly_begun(path: Path, experiment: Experiment) -> None:
    """Remove what a process has left that died while it made the folder, and nothing that anybody else has written."""
    file = path / EXPERIMENT
    found = list(path.iterdir()) if path.is_dir() else []
    ours = [entry for entry in found if entry == file or (entry.name.startswith(".") and entry.suffix == ".tmp")]
    if {entry.name for entry in found if entry not in ours} - {FLOWER_LOG}:
        return
    if not file.exists() or file.read_bytes() == complete(experiment).to_toml().encode():
        for entry in ours:
            entry.unlink()


def _value(values: Any, dotted: str) -> Any:  # noqa: ANN401 - JSON
    for key in dotted.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values
