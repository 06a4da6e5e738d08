"""Flower's command line: submit an app to a SuperLink, follow its log, and say how the run ended.

``flwr run`` exits with 0 when the run failed, and its log tells of the cause in many words. Both the private SuperLink
of a simulation and that of a real deployment are asked from here. Flower is reached through its programs alone.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import tomli_w

import fedkd
from fedkd.errors import LostSightError, RunError

CONNECTION: Final = "fedkd"
"""Name of the SuperLink in Flower's ``config.toml``."""
ANSWER_SECONDS: Final = 300.0
"""Seconds that one of Flower's short commands may take, which on a busy machine are many."""
_POLL_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 5.0  # before a SuperLink that did not answer is asked again
_GRACE_SECONDS: Final = 10.0  # a simulation that is told to stop shuts Ray down first
_SOCKET_ROOM: Final = 25  # a socket's path has at most 107 characters, and Ray adds about 80 to the temporary folder's
_CAUSE_LINES: Final = 20
_CHATTER: Final = re.compile(r"INFO +:|\d{4}-\d\d-\d\dT")  # how Flower's messages start, and those of its web server

_SETTINGS: Final = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else `uv sync` at every run
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",  # the log grows while the run goes on
    "SPT_NOENV": "1",  # Ray's process titles must not overwrite the environment by which we find its processes
}


class Commands:
    """Flower's programs with a folder of their own, connected to one SuperLink.

    Args:
        output: log file, open for writing, which gets what the run says.
        connection: the SuperLink's entry in Flower's ``config.toml``, such as its address.

    Attributes:
        output: the log file.
    """

    def __init__(self, output: IO[bytes], connection: Mapping[str, str | bool]) -> None:
        """Make the folder; :meth:`stop` removes it."""
        self.output = output
        self._home = Path(tempfile.mkdtemp(prefix="fedkd-", dir=_short_temporary_folder()))
        entry = {"superlink": {"default": CONNECTION, CONNECTION: dict(connection)}}
        (self._home / "config.toml").write_text(tomli_w.dumps(entry), encoding="utf-8")
        self._env = _environment(self._home)
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a program in an empty folder."""
        folder = self._home / "empty"  # Ray's workers look for modules here before they look into the app
        folder.mkdir(exist_ok=True)
        process = subprocess.Popen(  # noqa: S603 - a fixed program of this Python environment
            command,
            env=self._env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop the rest in order
        )
        self._started.append(process)
        return process

    def ask(self, *command: str) -> dict[str, Any]:
        """Return the JSON answer of one ``flwr`` command.

        Raises:
            RunError: it did not succeed, or not in time; the message holds what it said.
        """
        with tempfile.TemporaryFile() as output:
            process = self.start(["flwr", *command, "--format", "json"], output)
            try:
                process.wait(ANSWER_SECONDS)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise RunError(f"`flwr {command[0]}` did not answer within {ANSWER_SECONDS:g} s") from error
            output.seek(0)
            text = without_colours(output.read().decode(errors="replace"))
        try:
            answer: dict[str, Any] = json.loads(text[text.index("{") :])
        except ValueError:
            answer = {"error-message": text}
        if not answer.get("success"):
            raise RunError(f"`flwr {command[0]}` failed: {answer.get('error-message', text).strip()}")
        return answer

    def submit(self, app_dir: Path, *options: str) -> str:
        """Submit an app; return Flower's number of the run.

        Raises:
            RunError: the SuperLink does not answer, or refuses it.
        """
        return str(self.ask("run", str(app_dir.resolve()), CONNECTION, *options)["run-id"])

    def watch(
        self,
        run_id: str,
        *,
        timeout: float | None = None,
        patience: float = 0.0,
        on_poll: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy a run's log to the output until the run is over; return when it has completed.

        A log that broke off is copied once more from its beginning.

        Args:
            run_id: Flower's number of the run.
            timeout: seconds it may take; unlimited if None.
            patience: seconds for which a SuperLink that does not answer is asked again.
            on_poll: called about once a second while the run goes on.

        Raises:
            LostSightError: with patience, the SuperLink did not answer for so long.
            RunError: it failed, was stopped or took too long; the message holds the cause.
        """
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        run, whole, enough = {"status": "submitted"}, False, float("inf")
        while not run["status"].startswith("finished") or not (whole or time.monotonic() >= enough):
            whole = self._follow_log(run_id, deadline, on_poll)
            run = self._find(run_id, patience)
            if run["status"].startswith("finished"):
                enough = min(enough, time.monotonic() + patience)
            if patience and not whole:
                time.sleep(_POLL_SECONDS)
        on_poll()
        if run["status"] != "finished:completed":
            raise failure(f"the Flower run ended as {run['status']}: {run['status-details']}", self.output)

    def stop(self) -> None:
        """End all processes that were started from here, and theirs, and delete the folder."""
        try:
            self._end_processes(signal.SIGTERM)
        finally:  # a second Ctrl-C shortens the grace, no more
            self._end_processes(signal.SIGKILL)
            for process in self._started:
                process.wait()
            shutil.rmtree(self._home, ignore_errors=True)

    def _find(self, run_id: str, patience: float) -> dict[str, Any]:
        """Return what the SuperLink says of a run, as soon as it answers."""
        deadline = time.monotonic() + patience
        while True:
            try:
                run: dict[str, Any] = self.ask("list", CONNECTION, "--run-id", run_id)["runs"][0]
            except RunError as error:
                if not patience:
                    raise
                if time.monotonic() >= deadline:
                    what = f"lost sight of run {run_id}, which may go on; asked for {patience:.0f} s, and"
                    raise LostSightError(f"{what} {' '.join(str(error).split()).rstrip('.')}") from None
                time.sleep(min(_PAUSE_SECONDS, patience))
            else:
                return run

    def _follow_log(self, run_id: str, deadline: float, on_poll: Callable[[], None]) -> bool:
        """Copy the run's log to the output; return whether Flower ended the copy because the run is finished.

        One command serves the whole run: to ask for the status every second would cost a second of CPU time each.
        """
        copy = self.start(["flwr", "log", run_id, CONNECTION, "--stream"], self.output)
        while True:
            on_poll()
            if time.monotonic() > deadline:
                raise failure("the Flower run did not finish in time and was stopped", self.output)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return copy.wait(_POLL_SECONDS) == 0

    def _end_processes(self, how: signal.Signals) -> None:
        """Signal every process of the run once; wait until none is left or the grace is over."""
        signalled: set[int] = set()
        deadline = time.monotonic() + _GRACE_SECONDS
        while (alive := self._alive()) and time.monotonic() < deadline:
            for pid in alive - signalled:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
            signalled |= alive
            time.sleep(0.05)

    def _alive(self) -> set[int]:
        return {process.pid for process in self._started if process.poll() is None} | _marked(self._home)


def failure(problem: str, output: IO[bytes]) -> RunError:
    """Build the error of a failed run: with the end of the last traceback in its log, or the end of the log."""
    log = Path(output.name)
    text = without_colours(log.read_text(encoding="utf-8", errors="replace"))
    lines = [line for line in text.splitlines() if line.strip() and not _CHATTER.match(line)]
    start = max((n for n, line in enumerate(lines) if line.startswith("Traceback")), default=None)
    if start is not None:
        lines = list(itertools.takewhile(lambda line: not line.startswith("ERROR :"), lines[start:]))
    if len(lines) > _CAUSE_LINES:
        begin = [] if start is None else lines[:1]  # by which a reader knows a traceback
        lines = [*begin, *lines[1 - _CAUSE_LINES :]]
    return RunError("\n".join([problem, *lines, f"The whole log is in {log}."]))


def without_colours(text: str) -> str:
    """Return a text as it would be in a terminal without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _short_temporary_folder() -> str:
    """Return the folder for temporary files, or a shorter one if Ray's sockets would not fit."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _SOCKET_ROOM else "/tmp"  # noqa: S108 - mkdtemp makes a private folder in it


def _environment(home: Path) -> dict[str, str]:
    """Return the environment of all processes of a run; ``FLWR_HOME`` also marks them as ours."""
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}  # never join a running cluster
    no_proxy = ",".join(filter(None, [env.get("no_proxy", env.get("NO_PROXY")), "127.0.0.1"]))
    # Flower starts its programs by name: let it find those of this Python environment.
    path = os.pathsep.join(filter(None, [sysconfig.get_path("scripts"), env.get("PATH")]))
    # Last of all the caller's folder, where models and strategies named by object reference may be.
    folders = [str(Path(fedkd.__file__).parent.parent), env.get("PYTHONPATH"), str(Path.cwd())]
    imports = os.pathsep.join(filter(None, folders))
    ours = {"FLWR_HOME": str(home), "RAY_TMPDIR": str(home), "no_proxy": no_proxy, "PATH": path, "PYTHONPATH": imports}
    return env | _SETTINGS | ours


def _marked(home: Path) -> set[int]:
    """Find the processes of a run by their environment; they are in several sessions, so no group holds them all.

    Without ``/proc`` (macOS) none is found: there the simulation ends by itself soon after its SuperLink has ended.
    """
    mark = f"FLWR_HOME={home}".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found
