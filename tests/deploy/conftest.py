"""A deployment of real processes: started by the scripts that it wrote, ended by their pids."""

import contextlib
import os
import socket
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

import fedkd
from fedkd.deploy import init as deployment
from tests.deploy.network import Loopback, Namespaces

HOST = "127.0.0.1"
SECONDS = 60.0
LOOPBACK = Loopback()
LISTENS = "Uvicorn running on https"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Started:
    """One program, and what it said so far."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str], folder: Path | None = None) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, times: int = 1) -> str:
        """Wait until it says something; return all that it said."""
        deadline = time.monotonic() + SECONDS
        while self.said.count(text) < times:
            if self.process.poll() is not None and self.said.count(text) < times:
                raise AssertionError(f"it ended with {self.process.returncode}:\n{self.said}")
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.said}"
            time.sleep(0.1)
        return self.said

    def ended(self) -> int:
        """Wait until it ends by itself; return its exit code."""
        return self.process.wait(SECONDS)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            self.process.kill()
        self.process.wait()


class Deployment:
    """A folder that ``fedkd deploy init`` made, and the programs that run from it, each on its machine."""

    def __init__(self, folder: Path, nodes: list[str], network: Loopback | Namespaces = LOOPBACK) -> None:
        self.network = network
        self.address = f"{network.address('superlink')}:{free_port()}"
        self.folder = folder / "fed"
        self.logs = folder
        self.programs: list[str] = []  # folders of programs that stand in for Flower's
        self._started: list[Started] = []
        deployment.init(self.folder, self.address, nodes)

    def free_port(self) -> int:
        """Return a port that nobody listens on."""
        return free_port()

    def script(self, name: str, *arguments: str, **env: str) -> Started:
        """Start one of the written scripts, on the machine whose folder it is in."""
        return self.start(["sh", str(self.folder / name), *arguments], machine=name.partition("/")[0], **env)

    def node(self, *options: str, **env: str) -> Started:
        """Start a SuperNode with other options than the written ones."""
        address = ["--superlink", self.address, "--port", str(free_port())]
        return self.start(["flower-supernode", *address, *options], **env)

    def start(self, command: list[str], machine: str = "superlink", folder: Path | None = None, **env: str) -> Started:
        path = os.pathsep.join([*self.programs, sysconfig.get_path("scripts"), os.environ["PATH"]])
        log = self.logs / f"{len(self._started)}.log"
        mark = {"FLWR_HOME": str(self.logs / "home"), "FEDKD_TEST": str(self.logs), "RUNTIME_PORT": str(free_port())}
        ours = {"PYTHONPATH": str(Path(fedkd.__file__).parents[1]), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}
        environment = {**os.environ, **mark, **ours, "PATH": path, "no_proxy": HOST, "PYTHONUNBUFFERED": "1", **env}
        self._started.append(Started([*self.network.prefix(machine), *command], log, environment, folder))
        return self._started[-1]

    def stop(self) -> None:
        """End all programs, the last one first, and see that nothing of them is left."""
        for program in reversed(self._started):
            program.stop()
        deadline = time.monotonic() + 30
        while left := self._left():
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.2)

    def _left(self) -> list[str]:
        mark, found = f"FEDKD_TEST={self.logs}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Return a deployment whose SuperLink runs and knows the nodes."""
    here = Deployment(tmp_path_factory.mktemp("deployment"), ["hospital-a", "hospital-b"])
    try:
        here.superlink = here.script("superlink/start.sh")
        here.superlink.wait_for(LISTENS)
        here.registered = here.script("operator/register.sh")
        assert here.registered.ended() == 0, here.registered.said
        yield here
    finally:
        here.stop()
