"""The same experiment for several strategies and seeds: one row per strategy, with mean and standard deviation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fedkd.app.loop import OnRound
from fedkd.app.run_folder import claim, write_file
from fedkd.config import Experiment
from fedkd.engine.simulate import check, simulate
from fedkd.errors import UserError
from fedkd.gains import BASELINE, measure, over_seeds, write_csv

PUBLIC_ONLY = "public_only"
NOT_COMPARED = ("strategy", "seed", "rounds", "digest", "took_no_part")


@dataclass(frozen=True)
class Comparison:
    """All runs of a comparison.

    Attributes:
        runs: one flat record per strategy and seed: ``strategy``, ``seed``, ``digest``, ``clients_global.accuracy``,
            ...; a model that does not exist has no such keys.
        gained: what each view gained in each run, as :func:`fedkd.gains.gains` has it, with ``strategy`` and
            ``seed``; none unless the experiment asks for the clients alone.
    """

    runs: Sequence[Mapping[str, Any]]
    gained: Sequence[Mapping[str, Any]] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One record per strategy, in the order given: ``<measure>.mean`` and ``<measure>.sd`` (None for one seed)."""
        strategies = dict.fromkeys(run["strategy"] for run in self.runs)
        return [_row(name, [run for run in self.runs if run["strategy"] == name]) for name in strategies]

    @property
    def gains(self) -> list[dict[str, Any]]:
        """One record per strategy and view: mean gain over the clients alone, with its interval."""
        return over_seeds(self.gained)

    def to_json(self) -> dict[str, Any]:
        """Return rows and runs as plain values."""
        plain = {"rows": self.rows, "runs": list(self.runs)}
        return {**plain, "gains": self.gains} if self.gained else plain


def plan(experiment: Experiment, strategies: Sequence[str], seeds: Sequence[int]) -> list[Experiment]:
    """Return the experiments of a comparison in the order in which they run (see :func:`compare`).

    Raises:
        UserError: a strategy or a seed is named more than once.
    """
    for what, given in (("strategy", strategies), ("seed", seeds)):
        if twice := [value for value in dict.fromkeys(given) if list(given).count(value) > 1]:
            raise UserError(f"compare: expected each {what} once, found {twice[0]!r} more often; leave it out.")
    names = dict.fromkeys([*strategies, PUBLIC_ONLY] if experiment.data.public_labels else strategies)
    return [experiment.changed(strategy=name, seed=seed) for name in names for seed in seeds]


def compare(
    experiment: Experiment, strategies: Sequence[str], seeds: Sequence[int], out: Path, on_round: OnRound
) -> Comparison:
    """Run every strategy with every seed.

    Where the public set is labelled, ``public_only`` stands in every comparison: it says what its labels are worth.

    Args:
        experiment: everything but strategy and seed.
        strategies: names or object references.
        seeds: the runs' seeds.
        out: folder that receives ``comparison.csv``, ``runs.csv`` (with ``alone``, ``gains.csv`` too) and a run folder
            for each run.
        on_round: called after every round of every run with its record.

    Raises:
        UserError: a strategy does not exist or cannot run the experiment, or the folder is in use; nothing has been
            run then.
    """
    variants = plan(experiment, strategies, seeds)
    for variant in variants:
        check(variant)
    claim(out)
    runs: list[dict[str, Any]] = []
    gained: list[dict[str, Any]] = []
    for variant in variants:
        folder = out / variant.strategy.replace(":", ".") / f"seed-{variant.seed}"
        result = simulate(variant, out=folder, on_round=on_round)
        runs.append(flatten(result.summary))
        _write(out, Comparison(runs, gained))  # after every run: one that fails must not cost the others
        if variant.alone and variant.strategy != BASELINE and result.clients:
            run = {"strategy": variant.strategy, "seed": variant.seed}
            gained += [{**run, **row} for row in measure(variant, folder, on_round)]
            _write(out, Comparison(runs, gained))
    return Comparison(runs, gained)


def flatten(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's summary with its metrics as flat keys such as ``clients_global.accuracy``.

    Who took no part, and why, is one text.
    """
    flat = {key: value for key, value in summary.items() if key != "metrics"}
    flat["took_no_part"] = "; ".join(summary.get("took_no_part", []))
    for who, scores in summary["metrics"].items():
        flat |= {f"{who}.{name}": value for name, value in (scores or {}).items()}
    return flat


def _row(strategy: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"strategy": strategy, "seeds": len(runs)}
    for key in dict.fromkeys(key for run in runs for key in run):
        values = [run[key] for run in runs if run.get(key) is not None]
        if key not in NOT_COMPARED and values:
            row[f"{key}.mean"] = mean(values)
            row[f"{key}.sd"] = stdev(values) if len(values) > 1 else None
    return row


def _write(out: Path, comparison: Comparison) -> None:
    write_csv(out / "comparison.csv", comparison.rows)
    write_csv(out / "runs.csv", comparison.runs)
    if comparison.gained:
        write_csv(out / "gains.csv", comparison.gains)
    write_file(out / "comparison.json", json.dumps(comparison.to_json(), indent=2) + "\n")
