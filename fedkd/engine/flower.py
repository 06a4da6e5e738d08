"""Flower's own simulation, run once and safely.

``flwr run`` alone leaves a SuperLink behind that lives on in the folder of the first run, and lets the clients of a
later run import code from there. So every run gets a SuperLink of its own, in an empty folder of its own, that is gone
when the run is over. Flower is reached only through its command line. Not for Windows.
"""

import contextlib
import socket
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from fedkd.engine.commands import Commands, failure
from fedkd.errors import UserError

_HOST: Final = "127.0.0.1"
_START_SECONDS: Final = 60.0


def run_app(
    app_dir: Path,
    *,
    supernodes: int,
    log: Path,
    concurrent_clients: int = 1,
    timeout: float | None = None,
    on_poll: Callable[[], None] | None = None,
) -> None:
    """Run a Flower app once in Flower's simulation; return when it completed.

    The app runs in an empty folder that is deleted afterwards: what it is to leave behind needs an absolute path.

    Args:
        app_dir: folder whose ``pyproject.toml`` has a ``[tool.flwr.app]`` table; it is only read.
        supernodes: number of simulated clients.
        log: file that receives everything the run printed; it grows while the run goes on.
        concurrent_clients: number of clients that compute at the same time, on one CPU each.
        timeout: seconds the run may take once it is submitted; unlimited if None.
        on_poll: called about once a second while the run goes on.

    Raises:
        UserError: ``app_dir`` is not an app that can be submitted.
        RunError: the run could not start, failed, was stopped or took too long; the message holds the cause.
    """
    _check_app(app_dir)
    size = f"num-supernodes={supernodes} client-resources-num-cpus=1 init-args-num-cpus={concurrent_clients}"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output, _private_superlink(output) as (commands, superlink):

        def poll() -> None:
            if on_poll is not None:
                on_poll()
            if superlink.poll() is not None:
                raise failure("Flower's SuperLink ended during the run", output)

        run_id = commands.submit(app_dir, "--federation-config", size)
        commands.watch(run_id, timeout=timeout, on_poll=poll)


def _check_app(app_dir: Path) -> None:
    """Refuse what is not an app, and what ``flwr run`` would rewrite."""
    project = app_dir / "pyproject.toml"
    if not project.is_file():
        raise UserError(f"{app_dir}: expected a Flower app, found no pyproject.toml.")
    try:
        flower = tomllib.loads(project.read_text(encoding="utf-8")).get("tool", {}).get("flwr", {})
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{project}: not valid TOML: {error}.") from error
    if "app" not in flower:
        raise UserError(f"{project}: expected a table [tool.flwr.app], found none.")
    if "federations" in flower:
        raise UserError(
            f"{project}: Flower no longer reads [tool.flwr.federations], and would rewrite this file: remove the table."
        )


@contextlib.contextmanager
def _private_superlink(output: IO[bytes]) -> Iterator[tuple[Commands, subprocess.Popen[bytes]]]:
    """Yield Flower's commands and a SuperLink that listens; afterwards no process and no file of it is left."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port = probe.getsockname()[1]
    commands = Commands(output, {"address": f"{_HOST}:{port}", "insecure": True})
    try:
        yield commands, _start(commands, port)
    finally:
        commands.stop()


def _start(commands: Commands, port: int) -> subprocess.Popen[bytes]:
    """Start a SuperLink on a loopback port and wait until it listens."""
    command = ["flower-superlink", "--simulation", "--insecure", "--host", _HOST, "--port", str(port)]
    process = commands.start(command, commands.output)
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((_HOST, port), timeout=1):
            return process
        time.sleep(0.05)
    raise failure("Flower's SuperLink did not start", commands.output)
