"""Real processes are killed in mid-round, and the run goes on: a node, the server's half, the SuperLink.

``FEDKD_KILLS=10 pytest -m slow -s tests/deploy/test_survival.py`` kills each ten times, at points of a round that
change from kill to kill, and prints how long each took.
"""

import json
import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedkd.app import loop
from fedkd.config import Experiment, parse
from fedkd.engine.local import LocalGrid
from tests.app.nodes import SMALL
from tests.deploy.conftest import LISTENS, Started
from tests.deploy.federation import Federation, federation, warm_programs
from tests.deploy.processes import kill_machine, of_machine, wait_until

pytestmark = [pytest.mark.flower, pytest.mark.slow]

KILLS = int(os.environ.get("FEDKD_KILLS", "2"))
EPOCHS = {"strategies.fedmd.transfer_epochs": 200, "strategies.fedmd.revisit_epochs": 200}
EXPERIMENT = parse(SMALL, {"rounds": KILLS + 2, "engine.evaluate_every": 0, **EPOCHS}, "test")
POINTS = ("begun", "one state", "computing", "all states", "record")
"""When to kill in a round: a client half has started, is a second old, one client or all have written their new state,
the round's record is written."""

DOUBT = 120.0
"""Seconds after which a node that has come back in the meantime is sent once more what died with it."""
LOSS = "Failed to send message"
"""What a SuperNode says when it drops a reply."""


class Silent(LocalGrid):
    """The simulation of clients that are silent where a real run says that they failed."""

    def __init__(self, experiment: Experiment, rows: Iterable[Mapping[str, Any]]) -> None:
        super().__init__(experiment)
        self._silent = {("train", row["round"]): set(row["failed"]) for row in rows}
        self._silent |= {("evaluate", row["round"]): set(row["unmeasured"]) for row in rows}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return super().send_and_receive([message for message in messages if not self._is_silent(message)])

    def _is_silent(self, message: Message) -> bool:
        data = message.metadata
        return self._keys[data.dst_node_id] in self._silent.get((data.message_type, int(data.group_id)), set())


class Killing:
    """One run of the federation that is disturbed: its folders, and what can be seen of it from outside."""

    def __init__(self, here: Federation, folder: Path) -> None:
        self.here, self.folder, self.server_out = here, folder, folder / "server"
        self._commands: list[Started] = []

    def begin(self, *options: str) -> None:
        """Let the operator start the run, or start it again."""
        out = self.folder / f"out-{len(self._commands)}"
        self._commands.append(self.here.begin(out, "--server-out", str(self.server_out), *options))

    def done(self) -> int:
        """Return the number of rounds that the server has written down."""
        return len(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """Return the records of the rounds so far, without a line that is being written."""
        file = self.server_out / "rounds.jsonl"
        lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    def states(self, round_: int) -> list[Path]:
        """Return the states that clients have written in a round of this run."""
        name = self.server_out / "run-id"
        run = name.read_text(encoding="utf-8").strip() if name.exists() else "none"
        return list((self.here.files / "store" / run).glob(f"client-*.{round_}.safetensors"))

    def wait_for(self, round_: int, point: str, victims: list[str]) -> None:
        """Wait until a round has come to a point, at the victims' machines."""
        wait_until((self.server_out / "run-id").exists, "the server has begun")
        wait_until(lambda: self.done() >= round_ - 1, f"round {round_ - 1} is done")
        if point == "record":
            wait_until(lambda: self.done() >= round_, f"round {round_} is done")
        elif "state" in point:
            count = 1 if point == "one state" else len(victims)
            wait_until(lambda: len(self.states_of(victims, round_)) >= count, f"{count} states of round {round_}")
        else:
            machines = [self.here.folder / victim for victim in victims]
            wait_until(lambda: any(of_machine(m, "flwr-clientapp") for m in machines), f"round {round_} has begun")
            time.sleep(1.0 if point == "computing" else 0.0)

    def wait_for_return(self, victim: str, round_: int) -> None:
        """Wait until a client has taken part in a round after this one."""
        wait_until(lambda: self.alive() and self.done() >= round_, f"round {round_} is closed")
        later = f"{victim} takes part after round {round_}"
        wait_until(lambda: self.alive() and any(victim in row["participants"] for row in self.rows()[round_:]), later)

    def states_of(self, victims: list[str], round_: int) -> list[Path]:
        """Return the states that some clients have written in a round of this run."""
        return [path for path in self.states(round_) if path.name.partition(".")[0] in victims]

    def went_on_after(self) -> int:
        """Wait until the last server says after which round it goes on; 0 if it begins again."""
        log = self.folder / f"out-{len(self._commands) - 1}" / "flower.log"
        said = re.compile(r"going on after round (\d+)|takes part: ")
        wait_until(lambda: self.alive() and said.search(text_of(log)), f"a server that goes on: {log}")
        found = said.search(text_of(log))
        return int(found.group(1) or 0) if found else 0

    def end(self) -> None:
        """Interrupt what a test has not waited for, and wait until no client half is at work: the next begins alone."""
        machines = [self.here.folder / client for client in self.here.clients]
        try:
            if self._commands and self._commands[-1].process.poll() is None:
                self.interrupt()
        finally:
            if self._commands:
                self._commands[-1].process.kill()
            with suppress(AssertionError):
                wait_until(lambda: not any(of_machine(m, "flwr-clientapp") for m in machines), "rest", seconds=60)
            for machine in machines:  # one may outlive its killed SuperNode by minutes (decision 18)
                kill_machine(machine, "flwr-clientapp")

    def interrupt(self) -> int:
        """Let the operator press Ctrl-C; return how the command ends."""
        self._commands[-1].process.send_signal(signal.SIGINT)
        return self._commands[-1].process.wait(120)

    def alive(self) -> bool:
        """Expect of the last command that it has not ended with a mistake."""
        last = self._commands[-1]
        assert last.process.poll() in (None, 0), last.said
        return True

    def ended(self) -> list[dict[str, Any]]:
        """Wait until all commands have ended, the last one alone well; return the records of the rounds."""
        *killed, last = self._commands
        assert last.process.wait(900) == 0, last.said
        for command in killed:
            assert command.process.wait(300) == 1, command.said
            assert not re.search("^digest", command.said, re.MULTILINE)
        assert f"digest  {self.rows()[-1]['digest']}" in last.said
        return self.rows()


def text_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def as_simulated(rows: list[dict[str, Any]]) -> None:
    """Expect of a run that it ends, bit for bit, as a simulation in which the same clients are silent."""
    experiment = EXPERIMENT.changed(rounds=len(rows))
    expected = loop.run(Silent(experiment, rows), experiment).rounds
    assert [row["digest"] for row in rows] == [record.digest for record in expected]
    assert [row["participants"] for row in rows] == [record.participants for record in expected]


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    sys.stdout.write(f"{what}: {time.monotonic() - start:.0f} s\n")
    sys.stdout.flush()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Return a federation whose nodes are there."""
    with warm_programs() as programs, federation(tmp_path_factory.mktemp("survival"), EXPERIMENT) as running:
        running.programs = programs
        running.start_nodes()
        try:
            yield running
        finally:
            for machine in [*running.clients, "superlink"]:
                kill_machine(running.folder / machine)  # a client half outlives a SuperNode that is told to stop


@pytest.fixture
def killing(here: Federation, tmp_path: Path) -> Iterator[Killing]:
    """Return a run of the federation to come; afterwards it is at rest."""
    one = Killing(here, tmp_path)
    try:
        yield one
    finally:
        one.end()


def test_nodes_that_are_killed_cost_a_round_and_come_back_with_their_state(here: Federation, killing: Killing) -> None:
    killing.begin("--set", "rounds=1000")
    for kill in range(KILLS):
        victim, point = here.clients[kill % len(here.clients)], POINTS[kill % 3]
        round_ = killing.done() + 2
        with timed(f"node, kill {kill + 1}: {victim}, round {round_}, {point}"):
            killing.wait_for(round_, point, [victim])
            assert kill_machine(here.folder / victim) > 1  # its client half too
            silent = not killing.states_of([victim], round_)  # a reply is sent only when the state is written
            here.start_until_let_in(victim)
            killing.wait_for_return(victim, round_)
        row = killing.rows()[round_ - 1]
        sys.stdout.write(f"  round {round_}: {row['seconds']:.0f} s, silent: {silent}, failed: {row['failed']}\n")
        if silent and row["seconds"] < DOUBT:  # its reply was not on its way, nor was it asked again
            assert victim in row["failed"]
        assert set(row["participants"]) | set(row["failed"]) == set(here.clients)
        assert len(row["participants"]) >= 2, row
    assert killing.interrupt() == 130

    rows = killing.rows()
    assert not any("afresh" in row for row in rows)
    as_simulated(rows)


@pytest.mark.parametrize("program", ["flwr-serverapp", ""], ids=["server half", "SuperLink"])
def test_a_server_that_is_killed_over_and_over_is_gone_on_with(
    here: Federation, program: str, killing: Killing
) -> None:
    """The server's half alone, or all that runs on the SuperLink's machine, as systemd does."""
    killing.begin()
    for kill in range(KILLS):
        round_, point = kill + 1, POINTS[kill % len(POINTS)]
        with timed(f"{program or 'SuperLink'}, kill {kill + 1}: round {round_}, {point}"):
            killing.wait_for(round_, point, here.clients)
            assert kill_machine(here.folder / "superlink", program)
            done = killing.done()
            if not program:
                here.script("superlink/start.sh").wait_for(LISTENS)
            killing.begin()
            went_on = killing.went_on_after()
        sys.stdout.write(f"  {done} rounds were done, it went on after {went_on}\n")
        assert went_on in (done, done - 1), "a round more than one is done again"
    rows = killing.ended()

    assert [row["round"] for row in rows] == list(range(1, KILLS + 3))
    as_simulated(rows)
    assert not any(row["failed"] for row in rows), "the end is that of a run which nobody has killed"


def test_a_reply_that_flower_loses_is_asked_for_again(here: Federation, killing: Killing) -> None:
    """As on a busy machine: the SuperLink's database is locked for longer than it waits, and a SuperNode gives up."""
    before = {key: node.said.count(LOSS) for key, node in here.nodes.items()}
    killing.begin("--set", "rounds=3")
    killing.wait_for(2, "one state", here.clients)
    with closing(sqlite3.connect(here.folder / "superlink" / "superlink.sqlite", isolation_level=None)) as database:
        wait_until(lambda: begins(database), "the database is ours")
        wait_until(lambda: any(node.said.count(LOSS) > before[key] for key, node in here.nodes.items()), LOSS)
        database.execute("ROLLBACK")
    rows = killing.ended()

    assert "it is sent again" in text_of(killing.folder / "out-0" / "flower.log")
    assert [row["failed"] for row in rows] == [{}, {}, {}]
    as_simulated(rows)


def begins(database: sqlite3.Connection) -> bool:
    """Lock a database for writing, if nobody else has."""
    with suppress(sqlite3.OperationalError):
        database.execute("BEGIN IMMEDIATE")
    return database.in_transaction
