"""Processes of a run, seen from outside: found by a mark in their environment or by descent, and killed by id."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedkd.config import Experiment

ROOT = Path(__file__).resolve().parents[2]
PROC = Path("/proc")
LONG_ROUNDS = Experiment(
    strategy="fedmd",
    rounds=6,
    data={"public": 40, "test": 400},
    federation={"clients": 4, "architectures": ("mlp", "linear"), "feature_width": 8},
    strategies={"fedmd": {"revisit_epochs": 100}},
)
"""Rounds of half a second: long enough to be killed in."""


def marked(mark: str) -> dict[int, str]:
    """Return the processes that carry a mark in their environment: command lines by process id."""
    found = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = command_line(int(folder.name))
        except OSError:
            continue
    return found


def command_line(process: int) -> str:
    """Return a process's command line, or what it calls itself; empty if it has ended."""
    try:
        text = (PROC / str(process) / "cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.replace("\0", " ").strip()


def tree(process: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
        except OSError:
            continue
        children.setdefault(int(parent), []).append(int(folder.name))
    found = [process]
    for one in found:
        found += children.get(one, [])
    return found


def workers_among(processes: Iterable[int]) -> list[int]:
    """Return those of some processes that are Ray workers and at work on a unit."""
    return [process for process in processes if command_line(process) == "ray::Worker.run"]


def kill(*processes: int) -> int:
    """Kill processes at once; return how many were there to be killed."""
    killed = 0
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
            killed += 1
        except ProcessLookupError:
            continue
    return killed


def shared_memory() -> set[str]:
    """Return the names of the files in shared memory."""
    return {path.name for path in Path("/dev/shm").iterdir()}  # noqa: S108 - only looked at


def open_sockets(folder: str) -> list[str]:
    """Return the sockets below a folder that some process still holds."""
    lines = (PROC / "net" / "unix").read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if f"{folder}/" in line]


def wait_until(condition: Callable[[], bool], seconds: float) -> float | None:
    """Wait for a condition; return the seconds that it took, None if it never came."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if condition():
            return time.monotonic() - started
        time.sleep(0.02)
    return None


@contextmanager
def one_ray(cpus: int) -> Iterator[None]:
    """Start a small Ray in this process, which grids then use and must leave as they found it."""
    import ray

    with (
        pytest.MonkeyPatch.context() as environment,
        tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder,  # a short path
    ):
        environment.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=0,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=100_000_000,
                _temp_dir=folder,
            )
            gc.collect()  # what Ray leaves unclosed would otherwise be some later test's warning
            yield
        finally:
            ray.shutdown()
            gc.collect()


@dataclass(frozen=True)
class Remains:
    """What is left of a run: nothing, if it is empty.

    Attributes:
        processes: by id.
        memory: files in shared memory.
        sockets: of its Ray, that are held by somebody.
    """

    processes: dict[int, str]
    memory: set[str]
    sockets: list[str]

    def __bool__(self) -> bool:
        """Return whether anything is left."""
        return bool(self.processes or self.memory or self.sockets)


@dataclass(frozen=True)
class Place:
    """Where programs run whose remains are looked for.

    Attributes:
        mark: what all their processes carry in their environment.
        ray: folder of their Ray.
        memory: what was in shared memory before.
    """

    mark: str
    ray: str
    memory: set[str]

    def start(self, *command: str | Path) -> "subprocess.Popen[bytes]":
        """Start the ``fedkd`` command, as leader of a process group of its own."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        name, _, value = self.mark.partition("=")
        environment |= {name: value, "RAY_TMPDIR": self.ray, "SPT_NOENV": "1"}  # titles must not overwrite the mark
        return subprocess.Popen(
            [sys.executable, "-m", "fedkd", *map(str, command)],
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def remains(self) -> Remains:
        """Return what is there now."""
        return Remains(marked(self.mark), shared_memory() - self.memory, open_sockets(self.ray))


@contextmanager
def place(name: str) -> Iterator[Place]:
    """Give a place for programs; what they leave is killed."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:  # a short path
        found = Place(f"FEDKD_TEST={name}", folder, shared_memory())
        try:
            yield found
        finally:
            kill(*marked(found.mark))
