"""``fedkd doctor``: look at this machine, and say what to do."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.table import Table
from rich.text import Text

from fedkd.deploy import checks, facts
from fedkd.deploy.checks import BOUNDS, GIB, Finding
from fedkd.deploy.transport import DEFAULT_PORT, parse_address
from fedkd.deploy.trust import findings_of

PORTS: Final = {DEFAULT_PORT: "SuperLink", 9094: "SuperNode"}
"""TCP ports that Flower's programs take on this machine unless told otherwise."""
_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def examine(
    superlink: str | None = None,
    root_certificates: Path | None = None,
    data: str | None = None,
    gpu_gib: float = 2.0,
) -> list[Finding]:
    """Look at this machine.

    Args:
        superlink: address of a SuperLink to connect to.
        root_certificates: whom to trust there.
        data: data set to load.
        gpu_gib: GiB of GPU memory that one worker needs.

    Raises:
        UserError: an address or a file is no such thing.
    """
    found = _of_superlink(superlink, root_certificates)
    available, total = facts.memory()
    return [
        checks.python(sys.version_info[:3]),
        *(checks.package(name, *facts.look_at_package(name)) for name in BOUNDS),
        *(checks.port(number, use, facts.listener(number)) for number, use in PORTS.items()),
        *found,
        checks.gpus(facts.gpus(), int(gpu_gib * GIB)),
        checks.memory(available, facts.cpus()),
        checks.shared_memory(facts.shared_memory(), total),
        checks.disk(shutil.disk_usage(os.curdir).free, str(Path.cwd())),
        checks.open_files(facts.open_files()),
        *([] if data is None else [checks.data(data, *facts.look_at_data(data))]),
    ]


def _of_superlink(superlink: str | None, root_certificates: Path | None) -> list[Finding]:
    if superlink is None:
        return [checks.clock(None)]
    address = parse_address(superlink)
    return findings_of(address, facts.look_at_superlink(address, root_certificates))


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
