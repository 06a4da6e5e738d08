"""``fedkd deploy ...`` and ``fedkd doctor``."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedkd.deploy.transport import OVERRIDE, parse_address
from fedkd.errors import InterruptedRunError, UserError

deploy = typer.Typer(no_args_is_help=True, help="Set up a real deployment: certificates, keys, commands, services.")

DEPLOYMENT = Annotated[Path, typer.Argument(metavar="DIR", help="folder of the deployment", show_default=False)]
SET = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="replace a key, e.g. federation.clients=4")
]
DAYS = Annotated[int, typer.Option(help="days that the server's certificate is valid")]


@deploy.command()
def init(
    folder: DEPLOYMENT,
    superlink: Annotated[str, typer.Option(metavar="HOST[:PORT]", help="the SuperLink's address", show_default=False)],
    nodes: Annotated[str, typer.Option(help="names of the nodes, separated by commas", show_default=False)],
    also: Annotated[str, typer.Option(help="further names and IP addresses of the SuperLink, with commas")] = "",
    days: DAYS = 365,
    experiment: Annotated[Path | None, typer.Option(help="experiment file for the operator's folder")] = None,
) -> None:
    """Write what a first deployment needs: one folder for every machine, with keys, commands and a systemd service."""
    from fedkd.deploy import init as deployment

    plan = deployment.init(folder, superlink, _names(nodes), _names(also), days, experiment)
    typer.echo(f"{folder}: a SuperLink at {plan.superlink}, {len(plan.nodes)} nodes")
    typer.echo(f"Take {folder / 'ca' / 'ca.key'} offline. What goes where is in {folder / 'README.txt'}.")


@deploy.command(name="add-node")
def add_node(
    folder: DEPLOYMENT,
    name: Annotated[str, typer.Argument(help="name of the new node", show_default=False)],
    new_key: Annotated[bool, typer.Option("--new-key", help="a node that there was: its key is lost or out")] = False,
) -> None:
    """Add one node: a folder with its key, and its public key for the operator; the authority's key is not needed."""
    from fedkd.deploy import init as deployment

    deployment.add_node(folder, name, new_key=new_key)
    if new_key:
        typer.echo(f"{folder / name / 'node.key'}: bring it to its machine, in the old one's place")
        typer.echo("The old key is let in until it is unregistered: sh flwr.sh supernode unregister ID fedkd")
    else:
        typer.echo(f"{folder / name}: bring it to its machine")
    typer.echo(f"{folder / 'operator' / 'nodes' / f'{name}.pub'}: register it with sh register.sh {name}")


@deploy.command()
def renew(folder: DEPLOYMENT, days: DAYS = 365) -> None:
    """Make a new certificate for the SuperLink, before the old one ends; nodes and operator need nothing new."""
    from fedkd.deploy import init as deployment

    end = deployment.renew(folder, days)
    where = folder / "superlink"
    typer.echo(
        f"{where / 'server.crt'}, {where / 'server.key'}: valid until {end:%Y-%m-%d}; bring both to the SuperLink"
    )


@deploy.command()
def split(
    file: Annotated[Path, typer.Argument(help="experiment file (TOML)", show_default=False)],
    out: Annotated[Path, typer.Option(help="new folder for the files", show_default=False)],
    set_: SET = None,
) -> None:
    """Divide a simulation into files for a deployment: the commons, each client's samples, and the experiment."""
    from fedkd import config
    from fedkd.data.dividing import COMMONS, EXPERIMENT, divide

    for key in divide(config.load(file, set_ or []), out):
        typer.echo(f"{key}  {out / f'{key}.toml'} becomes node.toml in its folder; {key}.npz and {COMMONS} go with it")
    typer.echo(f"experiment  {out / EXPERIMENT}; its data.name says where the SuperLink's machine has {COMMONS}")


@deploy.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="experiment file (TOML)", show_default=False)],
    superlink: Annotated[str, typer.Option(metavar="HOST[:PORT]", help="the SuperLink's address", show_default=False)],
    set_: SET = None,
    root_certificates: Annotated[Path | None, typer.Option(help="ca.crt of the deployment")] = None,
    insecure_on_purpose: Annotated[bool, typer.Option(OVERRIDE, help="no TLS, though others may listen")] = False,
    out: Annotated[Path | None, typer.Option(help="folder for the results here; else a new one in runs/")] = None,
    server_out: Annotated[str, typer.Option(help="run folder on the SuperLink's machine; else a new one there")] = "",
) -> None:
    """Run an experiment on the nodes of a deployment, and bring home what was measured."""
    from fedkd import config
    from fedkd.app.run_folder import new_folder
    from fedkd.deploy import run as deployed
    from fedkd.deploy.trust import expect_trusted
    from fedkd.progress import RoundProgress
    from fedkd.report import write_report
    from fedkd.tables import outside_line, run_table

    experiment = config.load(file, set_ or [])
    for key in deployed.unused(set_ or []):
        typer.echo(
            f"{key}: a deployment does not use it: every client computes on its own node; leave it out", err=True
        )
    connection = deployed.Connection.checked(superlink, root_certificates, insecure_on_purpose)
    deployed.check_deployable(experiment)
    expect_trusted(parse_address(connection.address), root_certificates)
    with nullcontext(out) if out else new_folder(Path("runs") / experiment.name) as folder:
        with RoundProgress([experiment.strategy], experiment.rounds) as progress, _telling_where(folder):
            told = progress.advance, progress.tell
            summary = deployed.run(experiment, connection, folder, server_out, *told)
        report = write_report(folder)
    _print(run_table(summary))
    if outside := outside_line(summary):
        typer.echo(outside)
    typer.echo(f"digest  {summary['digest']}\nreport  {report}\nfolder  {summary['folder']} on the SuperLink's machine")


@deploy.command()
def explain(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="file, or - for standard input", show_default=False)],
) -> int:
    """Say in one line what a log of a SuperLink or SuperNode means, and what to do; ends with 1 if nothing is known."""
    from fedkd.deploy.explain import explain as line_for
    from fedkd.deploy.explain import last_session

    try:
        text = sys.stdin.read() if str(log) == "-" else log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{log}: expected a log file, cannot read it: {error.strerror}.") from None
    line = line_for(text)
    unknown = (
        "the last ERROR line says most" if "ERROR" in last_session(text) else "no line says ERROR: all may be well"
    )
    typer.echo(line or f"nothing in it that we know; {unknown}")
    return int(line is None)


def doctor(
    superlink: Annotated[str | None, typer.Option(metavar="HOST[:PORT]", help="SuperLink to reach")] = None,
    root_certificates: Annotated[Path | None, typer.Option(help="ca.crt of the deployment")] = None,
    data: Annotated[str | None, typer.Option(help="data set to load: path, or name of a built-in one")] = None,
    folder: Annotated[Path | None, typer.Option(help="this machine's folder of a deployment, instead of these")] = None,
    gpu_memory: Annotated[float, typer.Option(metavar="GIB", help="GPU memory that one worker needs")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
) -> int:
    """Check this machine: versions, ports, clock, GPU, memory, disk, data, the way to a SuperLink, a node's files."""
    from fedkd.deploy.doctor import examine, exit_code, findings_table

    if gpu_memory <= 0:
        raise UserError(f"--gpu-memory: expected GiB above 0, found {gpu_memory:g}.")
    findings = examine(superlink, root_certificates, data, gpu_memory, folder)
    if as_json:
        typer.echo(json.dumps([finding.to_json() for finding in findings]))
    else:
        _print(findings_table(findings), 140)
    return exit_code(findings)


@contextmanager
def _telling_where(folder: Path) -> Iterator[None]:
    """Say of an interrupted run what became of it, and where what it has told is."""
    try:
        yield
    except KeyboardInterrupt as error:
        became = "; ".join(["interrupted", *getattr(error, "__notes__", [])])
        raise InterruptedRunError(f"{became}; what had come in by then is in {folder}") from None


def _print(table: Table, width: int = 120) -> None:
    console = Console()
    Console(width=console.width if console.is_terminal else width).print(table)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text.strip() else []
