"""What each view gains: the clients with a strategy, against the same clients alone for at least as many steps."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedkd.app.checkpoint import generations
from fedkd.app.loop import OnRound
from fedkd.app.run_folder import (
    ALONE,
    CHECKPOINTS,
    CLIENTS,
    GAINS,
    ROUNDS,
    SUMMARY,
    locked,
    other_settings,
    read_lines,
    write_file,
)
from fedkd.app.told import TOLD
from fedkd.config import Experiment
from fedkd.engine.resume import CutOff, go_on, opened
from fedkd.engine.simulate import simulate
from fedkd.errors import UserError
from fedkd.learner.requests import steps_of
from fedkd.metrics import summarise

BASELINE = "local"
CONFIDENCE = 0.95
MEASURED = ("clients", "missing", "alone", "together", "gain")
"""What is measured of a view, as :func:`gains` has it."""
Row = Mapping[str, Any]


def measure(experiment: Experiment, folder: Path, on_round: OnRound = lambda record: None) -> list[dict[str, Any]]:
    """Train the clients of a finished run alone, and write what each view gains into its folder.

    What an earlier process has done of it is not done again.

    Args:
        experiment: the one that was run.
        folder: its run folder.
        on_round: called after every round of the clients alone with its record.

    Returns:
        The rows of :func:`gains`; none if no client was measured with the strategy.

    Raises:
        RunError: the clients alone could not be trained.
        UserError: the records of the finished run are damaged.
    """
    if (folder / GAINS).exists():
        return _read(folder / GAINS, lambda path: json.loads(path.read_text(encoding="utf-8")))
    rounds, clients = (_read(folder / name, read_lines) for name in (ROUNDS, CLIENTS))
    if len(rounds) != experiment.rounds:
        found = f"found {len(rounds)}: restore the file, or start the run again"
        raise UserError(f"{folder / ROUNDS}: expected the records of {experiment.rounds} rounds, {found}.")
    if not clients:
        name = experiment.strategy
        TOLD.warning("alone: strategy %r has no clients that are measured, so none is trained alone", name)
        return []
    rows = gains(clients, _trained_alone(alone(experiment, rounds, clients), folder / ALONE, on_round))
    write_gains(folder, rows)
    return rows


def _read(path: Path, read: Callable[[Path], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    try:
        return read(path)
    except (OSError, ValueError) as error:
        remedy = "delete it, and go on again" if path.name == GAINS else "restore it, or start the run again"
        raise UserError(f"{path}: expected records as JSON, but: {error}; {remedy}.") from error


def _trained_alone(experiment: Experiment, folder: Path, on_round: OnRound) -> Sequence[Row]:
    """Return the records of clients alone, whose run is complete, is gone on with, or begins."""
    if (folder / SUMMARY).is_file():
        return read_lines(folder / CLIENTS)
    if experiment.engine.name == "local" and generations(folder / CHECKPOINTS):
        with opened(folder, other_settings(experiment)) as run:
            assert isinstance(run, CutOff)  # noqa: S101 - said to the type checker
            return go_on(run, on_round).clients
    if folder.is_dir():  # whoever began had not come to a checkpoint
        with locked(folder):
            shutil.rmtree(folder)
    return simulate(experiment, out=folder, on_round=on_round).clients


def alone(experiment: Experiment, rounds: Sequence[Row], clients: Sequence[Row]) -> Experiment:
    """Return the experiment in which every client trains alone, for at least as many gradient steps per round.

    Steps are made up of whole passes over the private samples, so that alone a client takes up to one pass more.

    Args:
        experiment: the one that was run.
        rounds: its records, as in ``rounds.jsonl``: they say how many steps each client took.
        clients: its records, as in ``clients.jsonl``.
    """
    epochs = {}
    for client in clients:
        taken = [row["participants"][client["client"]] for row in rounds if client["client"] in row["participants"]]
        pass_ = steps_of(client["num_samples"], 1, experiment.train.batch_size)
        epochs[client["client"]] = -(-sum(taken) // (pass_ * len(taken))) if taken and pass_ else 0
    return experiment.changed(strategy=BASELINE, alone=False, strategies={BASELINE: {"epochs": epochs}})


def gains(together: Sequence[Row], alone: Sequence[Row]) -> list[dict[str, Any]]:
    """Return for each view how much better its clients are with the strategy than alone.

    A client that only one of the runs could measure is left out, with a warning.

    Args:
        together: one record per client of the strategy's run, as in ``clients.jsonl``.
        alone: likewise, of the clients alone.

    Returns:
        A row for each view, in the order in which clients hold them, with ``view``, ``clients`` (their number),
        ``missing`` (training samples that lack the view), ``alone`` and ``together`` (mean accuracy on the global test
        set, 0 to 1) and ``gain`` (the difference).
    """
    before = {row["client"]: row for row in alone}
    both = [row for row in together if row["client"] in before]
    if left := sorted({row["client"] for row in together} ^ before.keys()):
        TOLD.warning("gains: without %s, measured in one of the two runs only", ", ".join(left))
    rows = []
    for view in dict.fromkeys(row["view"] for row in both):
        members = [row for row in both if row["view"] == view]
        with_, without = (_accuracy(records) for records in (members, [before[row["client"]] for row in members]))
        missing = sum(row["missing"].get(view, 0) for row in members)
        rows.append(
            {
                "view": view,
                "clients": len(members),
                "missing": missing,
                "alone": without,
                "together": with_,
                "gain": with_ - without,
            }
        )
    return rows


def over_seeds(runs: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the mean gains over several seeds, with the interval that Student's t gives the mean.

    Args:
        runs: rows of :func:`gains`, each with its ``strategy`` and ``seed``.

    Returns:
        A row for each strategy and view, in the order given: ``strategy``, ``view``, ``seeds`` (their number),
        ``clients``, ``missing``, ``alone``, ``together`` and ``gain`` (means), ``low`` and ``high`` (95 % interval of
        the gain; None for one seed).
    """
    rows = []
    for name, view in dict.fromkeys((run["strategy"], run["view"]) for run in runs):
        members = [run for run in runs if (run["strategy"], run["view"]) == (name, view)]
        means = {key: mean(run[key] for run in members) for key in MEASURED}
        half = half_width([run["gain"] for run in members])
        low, high = (None, None) if half is None else (means["gain"] - half, means["gain"] + half)
        rows.append({"strategy": name, "view": view, "seeds": len(members), **means, "low": low, "high": high})
    return rows


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the interval of a mean, ``t * s / sqrt(n)``."""
    from scipy.stats import t as student_t  # takes a second, and the report of one run needs none of it

    count = len(values)
    if count == 1:
        return None
    return float(student_t.ppf((1 + CONFIDENCE) / 2, count - 1)) * stdev(values) / sqrt(count)


def write_gains(folder: Path, rows: Sequence[Row]) -> None:
    """Write the rows of :func:`gains` into a run's folder, as ``gains.csv`` and ``gains.json``."""
    write_csv(folder / "gains.csv", rows)
    write_file(folder / GAINS, json.dumps(list(rows), indent=2) + "\n")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write records as a table; one that lacks a column leaves it empty.

    Raises:
        RunError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue())


def _accuracy(rows: Sequence[Row]) -> float:
    scores = summarise([row["global"] for row in rows])
    assert scores is not None  # noqa: S101 - said to the type checker: every view has a client
    return scores["accuracy"]
