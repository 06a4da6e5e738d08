"""The command line: ``fedkd run``, ``resume``, ``compare``, ``list``, ``deploy`` and ``doctor``.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 the run failed, 2 a mistake
in what the user gave, 3 lost sight of a run that may go on, 130 interrupted.
"""

import ctypes
import errno
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from click import ClickException
from click.exceptions import NoArgsIsHelpError
from rich.console import Console
from rich.table import Table

import fedkd
from fedkd import config
from fedkd.config import Experiment
from fedkd.deploy.cli import deploy, doctor
from fedkd.engine.interrupts import stop_in_order
from fedkd.errors import InterruptedRunError, LostSightError, RunError, UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

LOST_SIGHT = 3
"""Exit code when nobody answers for a run any more, and it may go on."""
INTERRUPTED = 130
"""Exit code of a program that was told to stop."""
_STANDARD_OUTPUT, _STANDARD_ERROR = 1, 2
_UNPRINTABLE = {errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF}
"""Why standard output may take nothing."""
WIDTH = 120
"""Columns of a table that is not printed to a terminal."""

FILE = Annotated[Path, typer.Argument(help="experiment file (TOML)", show_default=False)]
SET = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="replace a key, e.g. train.lr=0.01")]
WORKERS = Annotated[int | None, typer.Option(help="Ray workers; 0 runs in this process", show_default=False)]
ENGINE = Annotated[str | None, typer.Option(help="local or flower", show_default=False)]
OUT = Annotated[Path | None, typer.Option(help="folder for the results; else a new one in runs/", show_default=False)]
JSON = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


class Listed(StrEnum):
    """What can be listed."""

    strategies = "strategies"
    models = "models"
    data = "data"
    codecs = "codecs"
    settings = "settings"
    losses = "losses"
    transforms = "transforms"


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """Federated knowledge distillation on Flower and Ray."""
    if version:
        typer.echo(f"fedkd {fedkd.__version__}")
        raise typer.Exit


@app.command()
def run(
    file: FILE,
    set_: SET = None,
    workers: WORKERS = None,
    engine: ENGINE = None,
    out: OUT = None,
    as_json: JSON = False,
) -> None:
    """Run an experiment, and leave a run folder with its results, models and report."""
    with _output_for_results(as_json):
        experiment = _experiment(file, set_, workers, engine)
        from fedkd.app.run_folder import new_folder
        from fedkd.engine.simulate import check, simulate
        from fedkd.progress import RoundProgress

        check(experiment)
        with nullcontext(out) if out else new_folder(_usual(experiment)) as folder:
            with _telling_how_to_go_on(folder), RoundProgress([experiment.strategy], experiment.rounds) as progress:
                summary = simulate(experiment, out=folder, on_round=progress.advance).summary
            gained, report = _train_alone(experiment, folder), _report(folder)
    _show(summary, report, as_json, gained)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run that was cut off", show_default=False)],
    set_: SET = None,
    workers: WORKERS = None,
    as_json: JSON = False,
) -> None:
    """Go on with a run that was cut off, to the end that it would have had, bit for bit."""
    from fedkd.engine.resume import Finished, go_on, opened
    from fedkd.progress import RoundProgress

    with _output_for_results(as_json), opened(folder, _given(set_, workers)) as run:
        if isinstance(run, Finished):
            summary: Mapping[str, Any] = run.summary
        else:
            shown = [run.experiment.strategy], run.experiment.rounds, len(run.records)
            with _telling_how_to_go_on(folder), RoundProgress(*shown) as progress:
                summary = go_on(run, progress.advance).summary
        gained, report = _train_alone(run.experiment, folder), _report(folder)
    _show(summary, report, as_json, gained)


@app.command()
def compare(
    file: FILE,
    strategies: Annotated[str, typer.Option(help="names, separated by commas", show_default=False)],
    seeds: Annotated[str, typer.Option(help="seeds, separated by commas")] = "0,1,2",
    set_: SET = None,
    workers: WORKERS = None,
    out: OUT = None,
    as_json: JSON = False,
) -> None:
    """Run an experiment with several strategies and seeds, and print one table with mean and standard deviation."""
    with _output_for_results(as_json):
        experiment = _experiment(file, set_, workers, None)
        from fedkd.app.run_folder import new_folder
        from fedkd.compare import compare as run_all
        from fedkd.compare import plan
        from fedkd.engine.simulate import check
        from fedkd.progress import RoundProgress
        from fedkd.tables import comparison_table, mean_gains_table

        names, numbers = _split("--strategies", strategies), [_seed(text) for text in _split("--seeds", seeds)]
        variants = plan(experiment, names, numbers)
        for variant in variants:
            check(variant)
        shown = list(dict.fromkeys(variant.strategy for variant in variants))
        with (
            nullcontext(out) if out else new_folder(_usual(experiment, "-compare")) as folder,
            _telling_how_to_go_on(folder),
            RoundProgress(shown, experiment.rounds * len(numbers)) as progress,
        ):
            comparison = run_all(experiment, names, numbers, folder, progress.advance)
    with _results_in(folder):
        if as_json:
            typer.echo(json.dumps(comparison.to_json()))
            return
        _print(comparison_table(comparison))
        if comparison.gained:
            _print(mean_gains_table(comparison.gains))
        typer.echo(f"table  {folder / 'comparison.csv'}\nruns   {folder / 'runs.csv'}")


@app.command(name="list")
def list_(
    what: Annotated[Listed, typer.Argument(show_default=False)],
    as_json: JSON = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
) -> None:
    """List what an experiment can name, all settings, and all losses with their formulas."""
    from fedkd.listings import listing, to_markdown
    from fedkd.tables import listing_table

    with _output_for_results(as_json):
        rows = listing(what)
    if as_json:
        typer.echo(json.dumps(rows))
    elif markdown:
        typer.echo(to_markdown(what, rows))
    else:
        _print(listing_table(what, rows))


app.add_typer(deploy, name="deploy")
app.command()(doctor)


def main() -> None:
    """Run the command line, turning mistakes and failed runs into one message and an exit code."""
    stop_in_order()
    code = _run(sys.argv[1:])
    if "--json" in sys.argv:  # what is printed when the process ends, by whomever, is none of the result
        with suppress(OSError):
            os.dup2(_STANDARD_ERROR, _STANDARD_OUTPUT)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        code = app(arguments, prog_name="fedkd", standalone_mode=False)
        _flush()
    except ClickException as error:
        return error.exit_code if isinstance(error, NoArgsIsHelpError) else _say(_misused(error), error.exit_code)
    except UserError as error:
        return _say(f"error: {error}", 2)
    except (LostSightError, InterruptedRunError) as error:
        return _say(str(error), LOST_SIGHT if isinstance(error, LostSightError) else INTERRUPTED)
    except RunError as error:
        return _say("\n".join([f"the run failed: {error}", *getattr(error, "__notes__", [])]), 1)
    except OSError as error:
        if error.filename is not None or error.errno not in _UNPRINTABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STANDARD_OUTPUT)  # what is still to be written there
        return _say(f"the output cannot be printed ({error.strerror})", 1)
    return _say("interrupted", INTERRUPTED) if code == INTERRUPTED else int(code or 0)


def _misused(error: ClickException) -> str:
    """Return in one line what is wrong with a command."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "fedkd"
    said, _, hint = " ".join(error.format_message().split()).rstrip(".").partition(" Did you mean")
    hint = hint.partition(" Did you mean")[0].rstrip("?")  # click says it, and Typer once more
    return f"error: {said}{f' Did you mean{hint}?' if hint else ''}; see {command} --help."


@contextmanager
def _telling_how_to_go_on(folder: Path) -> Iterator[None]:
    """Add to whatever ends a run that has a checkpoint how to go on with it."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        hint = f"continue with: fedkd resume {shlex.quote(str(folder))}"
        there = _holds(folder, "checkpoints/round-*", "summary.json")
        if isinstance(error, KeyboardInterrupt):
            begun = _holds(folder, "rounds.jsonl", "*/*/rounds.jsonl")
            what = f"interrupted; the rounds that finished are in {folder}" if begun else "interrupted"
            raise InterruptedRunError(f"{what}\n{hint}" if there else what) from None
        if there:
            error.add_note(hint)
        raise


def _holds(folder: Path, *patterns: str) -> bool:
    return os.path.isdir(folder) and any(next(folder.glob(pattern), None) for pattern in patterns)


def _train_alone(experiment: Experiment, folder: Path) -> list[dict[str, Any]]:
    """Run the clients alone if the experiment asks for it, and return what each view gains; nothing without."""
    if not experiment.alone:
        return []
    from fedkd.gains import BASELINE, measure
    from fedkd.progress import RoundProgress

    with _telling_how_to_go_on(folder), RoundProgress([BASELINE], experiment.rounds) as progress:
        return measure(experiment, folder, progress.advance)


def _report(folder: Path) -> Path:
    from fedkd.report import write_report  # matplotlib takes a second: only once there is something to draw

    try:
        return write_report(folder)
    except KeyboardInterrupt:
        with _telling_how_to_go_on(folder):
            raise


def _show(summary: Mapping[str, Any], report: Path, as_json: bool, gained: list[dict[str, Any]]) -> None:
    from fedkd.tables import gains_table, outside_line, run_table

    with _results_in(report.parent):
        if as_json:
            typer.echo(json.dumps({**summary, "gains": gained} if gained else summary))
            return
        _print(run_table(summary))
        if outside := outside_line(summary):
            typer.echo(outside)
        if gained:
            _print(gains_table(summary["strategy"], gained))
        typer.echo(f"digest  {summary['digest']}\nreport  {report}")


@contextmanager
def _results_in(folder: Path) -> Iterator[None]:
    """Say where the results are if they cannot be printed.

    Raises:
        RunError: standard output is full, or nobody reads it any more.
    """
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STANDARD_OUTPUT)  # what is still to be written there
        raise RunError(f"the results cannot be printed ({error.strerror}); they are in {folder}") from error


@contextmanager
def _output_for_results(as_json: bool) -> Iterator[None]:
    """Keep standard output for the JSON: what strategies, their programs and Ray's workers print goes beside it."""
    if not as_json:
        yield
        return
    results = os.dup(_STANDARD_OUTPUT)
    os.dup2(_STANDARD_ERROR, _STANDARD_OUTPUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()
        os.dup2(results, _STANDARD_OUTPUT)
        os.close(results)


def _flush() -> None:
    """Write out what Python and C still hold for standard output."""
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None:
            stream.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)


def _usual(experiment: Experiment, ending: str = "") -> Path:
    return Path("runs") / f"{experiment.name}{ending}"


def _say(message: str, code: int) -> int:
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)
    return code


def _print(table: Table) -> None:
    console = Console()
    Console(width=console.width if console.is_terminal else WIDTH).print(table)


def _experiment(file: Path, overrides: list[str] | None, workers: int | None, engine: str | None) -> Experiment:
    return config.load(file, _given(overrides, workers, engine))


def _given(overrides: list[str] | None, workers: int | None, engine: str | None = None) -> list[str]:
    """Return all settings that were given on the command line as ``key=value``."""
    options: dict[str, Any] = {"engine.workers": workers, "engine.name": engine}
    return [*(overrides or []), *(f"{key}={value}" for key, value in options.items() if value is not None)]


def _split(option: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"{option}: expected at least one, separated by commas, found {text!r}.")
    return parts


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"--seeds: expected whole numbers separated by commas, such as 0,1,2, found {text!r}.")
    return int(text)
