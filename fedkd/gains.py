"""What each view gains: the clients with a strategy, against the same clients alone for at least as many steps."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd.config import Experiment
from fedkd.errors import UserError
from fedkd.learner.requests import steps_of
from fedkd.metrics import summarise

ALONE = "alone"
"""Name of the run folder of the clients alone, inside that of the run."""
BASELINE = "local"
Row = Mapping[str, Any]


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

    Args:
        together: one record per client of the strategy's run, as in ``clients.jsonl``.
        alone: likewise, of the clients alone.

    Returns:
        A row for each view, in the order in which clients hold them, with ``view``, ``clients`` (their number),
        ``missing`` (training samples that lack the view), ``alone`` and ``strategy`` (mean accuracy on the global test
        set, 0 to 1) and ``gain`` (the difference).

    Raises:
        UserError: the two runs measured different clients.
    """
    before = {row["client"]: row for row in alone}
    if {row["client"] for row in together} != before.keys():
        found = f"{len(together)} with the strategy and {len(before)} alone"
        raise UserError(f"gains: expected the same clients in both runs, found {found} that could be measured.")
    rows = []
    for view in dict.fromkeys(row["view"] for row in together):
        members = [row for row in together if row["view"] == view]
        with_, without = (_accuracy(records) for records in (members, [before[row["client"]] for row in members]))
        missing = sum(row["missing"].get(view, 0) for row in members)
        rows.append(
            {
                "view": view,
                "clients": len(members),
                "missing": missing,
                "alone": without,
                "strategy": with_,
                "gain": with_ - without,
            }
        )
    return rows


def write_gains(folder: Path, rows: Sequence[Row]) -> None:
    """Write the rows of :func:`gains` into a run's folder, as ``gains.csv`` and ``gains.json``."""
    with (folder / "gains.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "gains.json").write_text(json.dumps(list(rows), indent=2) + "\n", encoding="utf-8")


def _accuracy(rows: Sequence[Row]) -> float:
    scores = summarise([row["global"] for row in rows])
    assert scores is not None  # noqa: S101 - said to the type checker: every view has a client
    return scores["accuracy"]
