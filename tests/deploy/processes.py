"""The processes of one machine of a deployment, found by what its ``start.sh`` put into their environment."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 300.0


def of_machine(folder: Path, program: str = "") -> list[int]:
    """Return the pids of what runs from a machine's folder, of one program only if it is named."""
    mark, found = f"FLWR_HOME={folder.resolve() / 'flower'}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is not ours
            words = (process / "cmdline").read_bytes()  # empty for one that has ended and was not collected
            if words and program.encode() in words and mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def kill_machine(folder: Path, program: str = "") -> int:
    """SIGKILL all that runs from a machine's folder, as systemd does with a service; return how many it were.

    A program that was starting when it was looked for is found by the next look.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    while alive := of_machine(folder, program):
        assert time.monotonic() < deadline, f"they do not die: {alive}"
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= {*alive}
        time.sleep(0.02)
    return len(killed)


def wait_until(true: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Look every 20 ms whether something is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
