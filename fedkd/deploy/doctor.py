"""``fedkd doctor``: look at this machine, and say what to do."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.table import Table
from rich.text import Text

from fedkd.deploy import checks, facts, machine_checks
from fedkd.deploy.checks import BOUNDS, GIB, Finding
from fedkd.deploy.machine import FILES, Machine, file_problem, look_at_node, read_machine
from fedkd.deploy.transport import DEFAULT_PORT, parse_address
from fedkd.deploy.trust import findings_of
from fedkd.errors import UserError

PORTS: Final = {DEFAULT_PORT: "SuperLink", 9094: "SuperNode"}
"""TCP ports that Flower's programs take on this machine unless told otherwise."""
_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def examine(
    superlink: str | None = None,
    root_certificates: Path | None = None,
    data: str | None = None,
    gpu_gib: float = 2.0,
    folder: Path | None = None,
) -> list[Finding]:
    """Look at this machine.

    Args:
        superlink: address of a SuperLink to connect to.
        root_certificates: whom to trust there.
        data: data set to load.
        gpu_gib: GiB of GPU memory that one worker needs.
        folder: this machine's folder of a deployment, which says the first three.

    Raises:
        UserError: an address, file or folder is no such thing, or they cannot be given together.
    """
    _expect_together(superlink, root_certificates, data, folder)
    machine = None if folder is None else read_machine(folder)
    ports = PORTS if machine is None else {} if machine.port is None else {machine.port: machine.role}
    listeners = {number: facts.listener(number) for number in ports}
    if folder is None or machine is None:
        found = _of_superlink(superlink, root_certificates)
    else:
        found = _of_folder(folder, machine, any(listeners.values()))
    where = Path.cwd() if folder is None else folder.resolve()
    available, total = facts.memory()
    return [
        checks.python(sys.version_info[:3]),
        *(checks.package(name, *facts.look_at_package(name)) for name in BOUNDS),
        *(checks.port(number, use, listeners[number]) for number, use in ports.items()),
        *found,
        checks.gpus(facts.gpus(), int(gpu_gib * GIB)),
        checks.memory(available, facts.cpus()),
        checks.shared_memory(facts.shared_memory(), total),
        checks.disk(shutil.disk_usage(where).free, str(where)),
        checks.open_files(facts.open_files()),
        *([] if data is None else [checks.data(data, *facts.look_at_data(data))]),
    ]


def _expect_together(
    superlink: str | None, root_certificates: Path | None, data: str | None, folder: Path | None
) -> None:
    if folder is not None and (superlink, root_certificates, data) != (None, None, None):
        raise UserError(
            "--folder: expected no --superlink, --root-certificates or --data beside it, since the folder says them; "
            "leave them out."
        )
    if superlink is None and root_certificates is not None:
        raise UserError("--root-certificates: expected --superlink HOST:PORT beside it, found none; add it.")


def _of_superlink(superlink: str | None, root_certificates: Path | None) -> list[Finding]:
    if superlink is None:
        return [checks.clock(None)]
    address = parse_address(superlink)
    return findings_of(address, facts.look_at_superlink(address, root_certificates))


def _of_folder(folder: Path, machine: Machine, taken: bool) -> list[Finding]:
    """Look at a machine's files and, unless it is a SuperLink that does not run yet, at the way to its SuperLink."""
    files = [machine_checks.file(name, file_problem(folder / name)) for name in FILES[machine.role]]
    node = machine_checks.node(look_at_node(folder)) if machine.role == "SuperNode" else []
    trusts = files[0].verdict == "ok"
    if not trusts or (machine.role == "SuperLink" and not taken):
        return [*files, *node]
    link = facts.look_at_superlink(machine.superlink, folder / "ca.crt")
    return [*files, *node, *findings_of(machine.superlink, link)]


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 1 if a check failed, else 0."""
    return int(any(finding.verdict == "fail" for finding in findings))


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return the findings as a table for people."""
    table = Table(title="this machine")
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict, _STYLES[finding.verdict])
        table.add_row(finding.name, verdict, Text(finding.found), Text(finding.advice))
    return table
