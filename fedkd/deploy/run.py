"""Run an experiment on a deployment: submit it to a SuperLink, follow it, and bring home what came out.

The server's half runs on the SuperLink's machine and leaves its run folder there, with its models. What it measured
comes back through the run's log (see :mod:`fedkd.app.announce`).
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any, Final, Self

from fedkd.app.announce import announced, announcements, is_announcement
from fedkd.app.history import RoundRecord
from fedkd.app.run_folder import CLIENTS, EXPERIMENT, FLOWER_LOG, ROUNDS, claim, write_file
from fedkd.config import Experiment
from fedkd.deploy.transport import check_transport, parse_address
from fedkd.engine.bundle import write_app_elsewhere
from fedkd.engine.commands import CONNECTION, Commands
from fedkd.engine.interrupts import interrupts_wait
from fedkd.errors import LostSightError, RunError, UserError
from fedkd.strategy.registry import complete, create
from fedkd.wording import printable

PATIENCE: Final = 300.0
"""Seconds for which a SuperLink that does not answer is asked again: a restart, or a broken line."""
_SIMULATIONS: Final = {"engine.name", "engine.workers", "engine.address", "engine.gpus_per_worker"}
_CAUSE_LINES: Final = 60
"""Lines of a cause that are shown: a client's traceback has some."""
_END: Final = {"manifest", "folder", "summary"}


@dataclass(frozen=True)
class Connection:
    """The way to a SuperLink.

    Attributes:
        address: ``host:port``.
        root_certificates: file of the authority that the SuperLink's certificate is signed by; plain text if None.
    """

    address: str
    root_certificates: Path | None

    @classmethod
    def checked(cls, superlink: str, root_certificates: Path | None, insecure_on_purpose: bool) -> Self:
        """Return a connection that leaves this machine with TLS only, or because the user said so.

        Raises:
            UserError: it would be plain text, or there is no such file or address.
        """
        address = str(parse_address(superlink))
        check_transport(address, root_certificates is not None, insecure_on_purpose)
        if root_certificates is not None and not root_certificates.is_file():
            raise UserError(f"--root-certificates: expected a file such as ca.crt, found none at {root_certificates}.")
        return cls(address, root_certificates)

    def entry(self) -> Mapping[str, str | bool]:
        """Return the SuperLink's entry in Flower's ``config.toml``."""
        if self.root_certificates is None:
            return {"address": self.address, "insecure": True}
        return {"address": self.address, "root-certificates": str(self.root_certificates.resolve())}


def check_deployable(experiment: Experiment) -> None:
    """Refuse what no deployment can run, before anybody is asked; data and devices are other machines' matter.

    Raises:
        UserError: the samples are dealt out, or the strategy has no such name or settings.
    """
    if experiment.federation.partition != "own":
        found = f"found {experiment.federation.partition!r}, which deals samples out"
        remedy = "set it so, or make the files of a deployment by `fedkd deploy split`"
        raise UserError(f"federation.partition: expected 'own', where every node has its samples, {found}; {remedy}.")
    create(experiment)


def unused(overrides: Iterable[str]) -> list[str]:
    """Return those keys among ``key=value`` texts that mean nothing to a deployment."""
    keys = (text.partition("=")[0].strip() for text in overrides)
    return [key for key in dict.fromkeys(keys) if key in _SIMULATIONS]


def run(
    experiment: Experiment,
    connection: Connection,
    out: Path,
    server_out: str = "",
    on_round: Callable[[RoundRecord], None] = lambda record: None,
    on_told: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run an experiment on a deployment; return its summary, and ``folder``: the run folder on the SuperLink's machine.

    Args:
        experiment: what to run; its paths are those of the SuperLink's and the nodes' machines.
        connection: the way to the SuperLink.
        out: new or empty folder on this machine for log and results.
        server_out: run folder on the SuperLink's machine; a new one in ``runs/`` beside its files without.
        on_round: called after every round with its record.
        on_told: called with a line about who takes part, who does not, and why.

    Raises:
        UserError: the experiment cannot be run on a deployment, or ``out`` holds something.
            The server refuses it as well where it is another one than its folder says.
        LostSightError: the SuperLink no longer answers, and the run may go on.
        RunError: the run did not complete; the message holds the cause, and how to go on from a checkpoint.
    """
    check_deployable(experiment)
    claim(out)
    write_file(out / EXPERIMENT, complete(experiment).to_toml())
    log = out / FLOWER_LOG
    told = _Told(log, on_round, on_told)
    try:
        with log.open("wb") as output, _commands(output, connection) as commands, _app(experiment, server_out) as app:
            _follow(commands, app, told.report)
    except LostSightError as error:
        raise LostSightError(f"{error}; {_what_now(log, server_out)}") from None
    except RunError as error:
        _raise_cause(log)
        if _whole(log) not in str(error):  # Flower's command itself failed, and says why
            raise
        raise RunError("\n".join([*_told_by_flower(str(error)), *_going_on(log), _whole(log)])) from None
    finally:
        said = announced(_read(log))
        _keep(said, out)
    if not said.keys() >= _END:  # Flower calls a server that ended early "completed"
        _raise_cause(log)
        raise RunError("\n".join(["the run ended without a result.", *_going_on(log), _whole(log)]))
    return {**said["summary"][-1], "folder": said["folder"][-1]["path"]}


def _follow(commands: Commands, app: Path, on_poll: Callable[[], None]) -> None:
    """Submit an app and watch its run; an operator who no longer waits also stops it, so that the nodes are free again.

    Ctrl-C waits while it is being submitted: the SuperLink may have started a run whose number we do not know yet. The
    interrupt's note says what became of the run.
    """
    run_id = ""
    try:
        with interrupts_wait():
            run_id = _submitted(commands, app)
        commands.watch(run_id, patience=PATIENCE, on_poll=on_poll)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(_stopped(commands, run_id) if run_id else "no run was started")
        raise


def _submitted(commands: Commands, app: Path) -> str:
    """Submit an app; return the number of its run.

    Raises:
        LostSightError: nobody answers, and the SuperLink may have started it.
        RunError: it is refused.
    """
    try:
        return commands.submit(app)
    except RunError as error:
        if isinstance(error.__cause__, subprocess.TimeoutExpired):
            raise LostSightError(f"{error}; the SuperLink may have started the run all the same") from None
        raise


def _stopped(commands: Commands, run_id: str) -> str:
    """Stop a run at the SuperLink; return what became of it."""
    try:
        commands.ask("stop", run_id, CONNECTION)
    except RunError as error:
        return f"run {run_id} could not be stopped at the SuperLink, and may go on: {' '.join(str(error).split())}"
    return f"run {run_id} was stopped at the SuperLink"


def _raise_cause(log: Path) -> None:
    """Say why the run has failed in the server's own words, if it has said so: Flower's have it twice, with traceback.

    Raises:
        RunError: the cause.
    """
    for values in announced(_read(log)).get("failed", [])[-1:]:
        if values.get("mistake"):
            raise UserError(printable(values["text"], 2000)) from None
        lines = [printable(line, 600) for line in values["text"].splitlines()]
        if len(lines) > _CAUSE_LINES:
            lines = [*lines[: _CAUSE_LINES // 2], "...", *lines[-_CAUSE_LINES // 2 :]]
        raise RunError("\n".join([*lines, *_going_on(log), _whole(log)])) from None


def _told_by_flower(text: str) -> list[str]:
    """Return what Flower says of a failed run: its own words, and the traceback of a server that has crashed."""
    lines = [printable(line, 600) for line in text.splitlines()[:-1] if not is_announcement(line)]
    crashed = "heartbeat" not in lines[0]  # a server that was killed leaves none: it would be a client's
    return [lines[0], *dropwhile(lambda line: not line.startswith("Traceback"), lines[1:] if crashed else [])]


def _going_on(log: Path) -> list[str]:
    """Return the line that says how to go on with a run that has left a checkpoint; none if it has not."""
    said = announced(_read(log))
    if not said.get("kept") or not said.get("folder"):
        return []
    kept = f"It is kept up to round {said['kept'][-1]['round']}: when the cause is gone,"
    folder = printable(said["folder"][-1]["path"], 1000)
    return [f"{kept} start the same run again with --server-out {folder} and a new --out."]


def _whole(log: Path) -> str:
    return f"The whole log is in {log}."


def _what_now(log: Path, server_out: str) -> str:
    """Return what to do when a run is out of sight."""
    folder = next((values["path"] for values in announced(_read(log)).get("folder", [])), server_out)
    if not folder:
        return "its results are on the SuperLink's machine, in runs/ beside its start.sh; next time name --server-out"
    same = f"start the same run with --server-out {printable(folder, 1000)} and a new --out"
    return f"when the SuperLink answers again, {same}"


class _Told:
    """Tells what a log shows that is new, in order and each once, even when the log is fetched again."""

    def __init__(self, log: Path, on_round: Callable[[RoundRecord], None], on_told: Callable[[str], None]) -> None:
        self._log, self._on_round, self._on_told = log, on_round, on_told
        self._round = self._line = 0

    def report(self) -> None:
        for kind, values in announcements(_read(self._log)):
            if kind == "round" and values["round"] > self._round:
                self._round = values["round"]
                self._on_round(RoundRecord(**values))
            elif kind == "told" and values["number"] > self._line:
                self._line = values["number"]
                self._on_told(printable(values["text"], 1000))


def _keep(said: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> None:
    """Write what the server has announced as the files of a run folder; the summary if the run is complete."""
    for name, kind in ((ROUNDS, "round"), (CLIENTS, "client")):
        lines = dict.fromkeys(json.dumps(values) + "\n" for values in said.get(kind, []))
        if lines:
            write_file(out / name, "".join(lines))
    for kind in ("manifest", *(["summary"] if said.keys() >= _END else [])):
        for values in said.get(kind, [])[-1:]:
            write_file(out / f"{kind}.json", json.dumps(values, indent=2) + "\n")


@contextmanager
def _commands(output: Any, connection: Connection) -> Iterator[Commands]:  # noqa: ANN401 - a binary file
    commands = Commands(output, connection.entry())
    try:
        yield commands
    finally:
        commands.stop()


@contextmanager
def _app(experiment: Experiment, server_out: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fedkd-app-") as folder:
        write_app_elsewhere(Path(folder), experiment, server_out)
        yield Path(folder)


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")
