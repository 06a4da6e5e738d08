"""The report of one run: a single HTML file with everything in it, made from the files in the run's folder."""

import io
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedkd.app.run_folder import ALONE, CLIENTS, EXPERIMENT, GAINS, MANIFEST, REPORT, ROUNDS, SUMMARY
from fedkd.app.state import write_atomically
from fedkd.errors import RunError, UserError
from fedkd.report_template import TEMPLATE

Row: TypeAlias = dict[str, Any]  # one JSON object of the run's files

WHO = {
    "clients_global": "clients, global test set",
    "clients_local": "clients, own test splits",
    "ensemble_global": "teacher ensemble, global test set",
    "server_global": "server's student, global test set",
}

# Plots are drawn in stand-in colours, which become the page's own, so that they follow its light or dark theme.
_INK, _RULE = "#010101", "#020202"
_SERIES = tuple(f"#03030{number}" for number in range(1, 7))
_PAGE_COLOURS = {_INK: "var(--muted)", _RULE: "var(--rule)"} | {
    colour: f"var(--s{number})" for number, colour in enumerate(_SERIES, start=1)
}
_PLOT_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.5,
    "grid.color": _RULE,
    "svg.fonttype": "none",
    "text.color": _INK,
    "text.parse_math": False,  # a client may be called "$1"
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_INCHES = (5.2, 2.9)
_MANY_POINTS = 25  # beyond, no marks on the lines
_MANY_CLIENTS = 60  # beyond, the heatmap's rows are not named
_MANY_CLASSES = 30  # beyond, its columns are numbered
_LONG_NAME, _ROOM = 16, 50  # characters: beyond, a name is cut off; and all together are written aslant
_KILO = 1000
_HEATMAP_RGB = (0.36, 0.56, 0.88)  # between the two themes' first colour; its opacity is the share


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    label: str
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Plot:
    """One figure of the page."""

    title: str
    note: str
    svg: str
    legend: Sequence[Key] = ()


@dataclass(frozen=True)
class Line:
    """One curve over the rounds: a metric of one party."""

    label: str
    party: str
    metric: str
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Run:
    """What a run left in its folder."""

    name: str
    settings: str
    manifest: Row
    summary: Row
    rounds: Sequence[Row]
    clients: Sequence[Row]
    gains: Sequence[Row]
    alone: Row | None


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run's folder, from the other files there.

    The same files give the same bytes.

    Args:
        run_dir: folder with ``experiment.toml``, ``manifest.json``, ``summary.json``, ``rounds.jsonl`` and, if any
            round was evaluated, ``clients.jsonl``; ``gains.json`` and ``alone/`` if the clients also trained alone.

    Returns:
        Path of the report.

    Raises:
        UserError: a file is missing or not readable.
        RunError: the report cannot be written; the results are there.
    """
    page = _render(_read_run(run_dir))
    path = run_dir / REPORT
    try:
        write_atomically(path, page.encode())
    except OSError as error:
        again = f"make room, and then the report with: fedkd resume {shlex.quote(str(run_dir))}"
        raise RunError(f"{path}: expected a file that can be written, but: {error}; {again}") from error
    return path


# --- reading


def _read_run(folder: Path) -> Run:
    clients, gains, alone = folder / CLIENTS, folder / GAINS, folder / ALONE / SUMMARY
    return Run(
        name=folder.resolve().name,
        settings=_read(folder / EXPERIMENT),
        manifest=_parse(_read(folder / MANIFEST), MANIFEST),
        summary=_parse(_read(folder / SUMMARY), SUMMARY),
        rounds=list(_read_rows(folder / ROUNDS)),
        clients=list(_read_rows(clients)) if clients.exists() else [],
        gains=json.loads(_read(gains)) if gains.exists() else [],
        alone=_parse(_read(alone), str(alone)) if alone.exists() else None,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: expected a file that a finished run leaves, found none ({error}); run it again."
        ) from None


def _read_rows(path: Path) -> Iterator[Row]:
    """Read JSON lines; a last line that a killed run left unfinished is no row."""
    lines = _read(path).split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                yield _parse(line, f"{path}, line {number}")
        except UserError:
            if number < len(lines):
                raise


def _parse(text: str, where: str) -> Row:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: expected JSON, found a mistake: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}.")
    return value


# --- the page


def _render(run: Run) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "count_of": _count,
        "duration": _duration,
        "number": _number,
        "points": _points,
        "percent": _percent,
        "size": _size,
        "width": _width,
    }
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the page
        mpl.rcParams.update(_PLOT_STYLE)
        plots = _plots(run.rounds)
        labels = _heatmap(run.clients, run.manifest.get("classes", [])) if run.clients else None
    return environment.from_string(TEMPLATE).render(
        name=run.name,
        settings=run.settings,
        summary=run.summary,
        cards=_cards(run),
        last=[(label, run.summary["metrics"][key]) for key, label in WHO.items() if run.summary["metrics"].get(key)],
        plots=plots,
        evaluated=_evaluated(run.rounds),
        labels=labels,
        rounds=run.rounds,
        clients=run.clients,
        gains=run.gains,
        failures=_failures(run.rounds),
        manifest=[(key, value if isinstance(value, str) else json.dumps(value)) for key, value in run.manifest.items()],
    )


def _cards(run: Run) -> list[Row]:
    summary, metrics = run.summary, run.summary["metrics"]
    parties = {"clients_global": "Clients", "ensemble_global": "Teacher ensemble", "server_global": "Server's student"}
    cards = [
        {"label": label, "value": _percent(metrics[key]["accuracy"]), "note": "accuracy, global test set"}
        for key, label in parties.items()
        if metrics.get(key)
    ]
    if metrics.get("clients_global"):
        worst = _percent(metrics["clients_global"].get("accuracy_worst10"))
        cards.insert(1, {"label": "Clients, worst tenth", "value": worst, "note": "accuracy, global test set"})
    failed = len(_failures(run.rounds))
    took = [summary["seconds"], *([run.alone["seconds"]] if run.alone else [])]
    of = f"{summary['rounds']} rounds" + (f", {_duration(took[1])} of it the clients alone" if run.alone else "")
    return [
        *cards,
        {"label": "Sent up", "value": _size(summary["bytes_up"]), "note": "all clients and rounds"},
        {"label": "Sent down", "value": _size(summary["bytes_down"]), "note": "all clients and rounds"},
        {"label": "Time", "value": _duration(sum(took)), "note": of},
        *([{"label": "Failed replies", "value": failed, "note": "reasons below"}] if failed else []),
    ]


def _failures(rounds: Sequence[Row]) -> list[Row]:
    return [
        {"round": row["round"], "client": client, "reason": reason}
        for row in rounds
        for client, reason in sorted((row["failed"] or {}).items())
    ]


# --- plots


def _plots(rounds: Sequence[Row]) -> list[Plot]:
    clients, ensemble, server = _SERIES[:3]
    worst = Line("clients, worst tenth", "clients_global", "accuracy_worst10", clients, dashed=True)

    def lines(metric: str) -> list[Line]:
        return [
            Line("clients, mean", "clients_global", metric, clients),
            Line("teacher ensemble", "ensemble_global", metric, ensemble),
            Line("server's student", "server_global", metric, server),
        ]

    traffic = [_traffic(rounds)] if any(row["bytes_up"] or row["bytes_down"] for row in rounds) else []
    if _evaluated(rounds) < 2:  # noqa: PLR2004 - a lone point is no curve
        return traffic
    return [
        _curves("Accuracy", "%, global test set", [*lines("accuracy"), worst], rounds, scale=100),
        *traffic,
        _curves("Negative log-likelihood", "nats, global test set; lower is better", lines("nll"), rounds),
        _curves("Expected calibration error", "%, global test set; lower is better", lines("ece"), rounds, scale=100),
    ]


def _evaluated(rounds: Sequence[Row]) -> int:
    return sum(1 for row in rounds if row["metrics"])


def _curves(title: str, note: str, lines: Sequence[Line], rounds: Sequence[Row], scale: float = 1) -> Plot:
    figure, axes = _figure()
    legend: list[Key] = []
    for line in lines:
        points = [
            (row["round"], scale * _finite(row["metrics"][line.party].get(line.metric)))
            for row in rounds
            if row["metrics"] and row["metrics"].get(line.party)
        ]
        if not points:
            continue
        mark, style = "o" if len(points) <= _MANY_POINTS else "", "--" if line.dashed else "-"
        axes.plot(
            *zip(*points, strict=True), color=line.colour, linestyle=style, marker=mark, markersize=3, linewidth=1.8
        )
        legend.append(Key(line.label, _PAGE_COLOURS[line.colour], line.dashed))
    return Plot(title, note, _svg(figure, title), legend)


def _traffic(rounds: Sequence[Row]) -> Plot:
    figure, axes = _figure()
    kinds = sorted({kind for row in rounds for kind in (*row["bytes_up"], *row["bytes_down"])})
    colours = {kind: _SERIES[number % len(_SERIES)] for number, kind in enumerate(kinds)}
    numbers = [row["round"] for row in rounds]
    for direction, sign in (("bytes_up", 1), ("bytes_down", -1)):
        bottom = np.zeros(len(rounds))
        for kind in kinds:
            heights = sign * np.array([row[direction].get(kind, 0) for row in rounds], dtype=float)
            axes.bar(numbers, heights, bottom=bottom, color=colours[kind], width=0.8, linewidth=0)
            bottom += heights
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _size(abs(value))))
    legend = [Key(kind, _PAGE_COLOURS[colour]) for kind, colour in colours.items()]
    return Plot(
        "Traffic", "bytes per round by what travels: up above the line, down below", _svg(figure, "Traffic"), legend
    )


def _heatmap(clients: Sequence[Row], classes: Sequence[str]) -> Plot:
    counts = np.array([row["label_counts"] for row in clients], dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(classes) == shares.shape[1] <= _MANY_CLASSES
    short = [name if len(name) <= _LONG_NAME else f"{name[:_LONG_NAME]}…" for name in classes] if named else []
    upright = sum(map(len, short)) <= _ROOM
    room = 0.8 if upright else 1.6
    figure = Figure(figsize=(_INCHES[0], min(9.0, room + 0.19 * len(clients))), layout="constrained")
    axes = figure.add_subplot()
    pixels = np.concatenate([np.broadcast_to(_HEATMAP_RGB, (*shares.shape, 3)), shares[..., None]], axis=2)
    axes.imshow(pixels, aspect="auto", interpolation="none")
    keys = [row["client"] for row in clients] if len(clients) <= _MANY_CLIENTS else []
    axes.set_yticks(range(len(keys)), keys)
    if named:
        axes.set_xticks(range(len(short)), short)
        if not upright:
            axes.tick_params(axis="x", rotation=45)
            for text in axes.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.tick_params(length=0)
    axes.set_xlabel("class")
    note = "share of each class in a client's training samples; the fuller the colour, the larger the share"
    return Plot("Labels of the clients", note, _svg(figure, "labels"))


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(length=0)
    axes.set_xlabel("round")
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element with the page's fonts and colours, and ids of its own."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()  # its metadata, dropped next, hold the date
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name.lower().replace(' ', '-')}-", text)
    for stand_in, colour in _PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


# --- numbers


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def _percent(value: float | None) -> str:
    return f"{100 * value:.1f} %" if value is not None and math.isfinite(value) else "–"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _number(value: float | None) -> str:
    return f"{value:.3f}" if value is not None and math.isfinite(value) else "–"


def _width(value: float | None) -> str:
    return f"{100 * min(max(value, 0), 1):.1f}%" if value is not None and math.isfinite(value) else "0"


def _count(value: int | Sequence[object] | Mapping[str, object]) -> int:
    return value if isinstance(value, int) else len(value)


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < _KILO:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= _KILO
    return f"{num_bytes:.3g} GB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    if minutes < 1:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest:.0f} s"
