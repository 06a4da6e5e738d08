"""Tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fedkd.compare import Comparison
from fedkd.listings import COLUMNS, cells

PARTIES = {
    "clients_global": "clients",
    "clients_local": "clients, own test",
    "ensemble_global": "ensemble",
    "server_global": "server",
}
MEGA = 1e6


def run_table(summary: Mapping[str, Any]) -> Table:
    """Return the final table of a run."""
    traffic = f"{summary['bytes_up'] / MEGA:.2f} MB up, {summary['bytes_down'] / MEGA:.2f} MB down"
    caption = f"{traffic}, {summary['seconds']:.1f} s; NLL and entropy in nats"
    table = Table(title=f"{summary['strategy']}, {summary['rounds']} rounds, seed {summary['seed']}", caption=caption)
    table.add_column("global test set", no_wrap=True)
    for name in ("accuracy %", "worst 10 %", "NLL", "ECE %", "Brier", "entropy"):
        table.add_column(name, justify="right", no_wrap=True)
    for key, label in PARTIES.items():
        scores = summary["metrics"][key]
        table.add_row(label, *(_scores(scores) if scores else ["–"] * 6))
    return table


def outside_line(summary: Mapping[str, Any]) -> str:
    """Return a line about the clients that took no part in a run; nothing if all did."""
    outside = [str(line).rstrip(".") for line in summary.get("took_no_part", [])]
    return f"took no part: {'; '.join(outside)}" if outside else ""


def gains_table(strategy: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row per view: the clients alone, with the strategy, and the gain."""
    caption = "alone for at least as many gradient steps; gain in percentage points"
    table = Table(title="accuracy on the global test set in %, mean over clients", caption=caption)
    table.add_column("view", no_wrap=True)
    for name in ("clients", "lacking", "alone", strategy, "gain"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        scores = [_number(row["alone"], 100, 1), _number(row["together"], 100, 1), f"{100 * row['gain']:+.1f}"]
        table.add_row(row["view"], str(row["clients"]), str(row["missing"]), *scores)
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Return one row per strategy: accuracies in percent as mean ± standard deviation, traffic, seconds."""
    rows = comparison.rows
    outside = dict.fromkeys(run["strategy"] for run in comparison.runs if run.get("took_no_part"))
    caption = f"not all clients took part: {', '.join(outside)} (see runs.csv)" if outside else None
    title = f"accuracy on the global test set in %, mean ± sd over {rows[0]['seeds']} seeds"
    table = Table(title=title, caption=caption)
    table.add_column("strategy", no_wrap=True)
    for name in (*PARTIES.values(), "MB up", "MB down", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        accuracies = [_spread(row, f"{who}.accuracy", 100, 1) for who in PARTIES]
        traffic = [_number(row[f"{direction}.mean"], 1 / MEGA, 2) for direction in ("bytes_up", "bytes_down")]
        table.add_row(row["strategy"], *accuracies, *traffic, _number(row["seconds.mean"], 1, 1))
    return table


def mean_gains_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row per strategy and view: the clients alone, with the strategy, the gain and its interval."""
    caption = "alone for at least as many gradient steps; gain in percentage points, 95 % interval of the mean"
    table = Table(title=f"what each view gains, mean over {rows[0]['seeds']} seeds", caption=caption)
    for name in ("strategy", "view"):
        table.add_column(name, no_wrap=True)
    for name in ("clients", "lacking", "alone", "together", "gain", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        scores = [_number(row["alone"], 100, 1), _number(row["together"], 100, 1), f"{100 * row['gain']:+.1f}"]
        interval = "–" if row["low"] is None else f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
        counts = [f"{round(row[key], 1):g}" for key in ("clients", "missing")]
        table.add_row(row["strategy"], row["view"], *counts, *scores, interval)
    return table


def listing_table(what: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a listing as a table."""
    table = Table(*COLUMNS[what])
    for row in rows:
        table.add_row(*(Text(cell.replace("`", "")) for cell in cells(what, row)))  # brackets are no markup
    return table


def _scores(scores: Mapping[str, float | None]) -> list[str]:
    percent = {"accuracy": 1, "accuracy_worst10": 1, "ece": 1}
    order = ("accuracy", "accuracy_worst10", "nll", "ece", "brier", "entropy")
    return [_number(scores[name], 100 if name in percent else 1, 1 if name in percent else 3) for name in order]


def _spread(row: Mapping[str, Any], key: str, factor: float, digits: int) -> str:
    if f"{key}.mean" not in row:
        return "–"
    deviation = row[f"{key}.sd"]
    middle = _number(row[f"{key}.mean"], factor, digits)
    return middle if deviation is None else f"{middle} ± {_number(deviation, factor, digits)}"


def _number(value: float | None, factor: float, digits: int) -> str:
    return "–" if value is None else f"{factor * value:.{digits}f}"
