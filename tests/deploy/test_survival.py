"""Real processes are killed in mid-round, and the run goes on: a node, the server's half, the SuperLink.

``FEDKD_KILLS=10 pytest -m slow -s tests/deploy/test_survival.py`` kills each ten times, at points of a round that
change from kill to kill, and prints how long each took.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedkd.app import loop
from fedkd.app.run_folder import read_lines
from fedkd.config import Experiment, parse
from fedkd.engine.local import LocalGrid
from tests.app.nodes import SMALL
from tests.deploy.conftest import LISTENS, Started
from tests.deploy.federation import Federation, federation, warm_programs
from tests.deploy.processes import kill_machine, of_machine, wait_until

pytestmark = [pytest.mark.flower, pytest.mark.slow]

KILLS = range(int(os.environ.get("FEDKD_KILLS", "1")))
ROUNDS, MANY = 5, 10
EPOCHS = {"strategies.fedmd.transfer_epochs": 300, "strategies.fedmd.revisit_epochs": 300}  # some seconds a round
CHANGES: Mapping[str, Any] = {"rounds": ROUNDS, "engine.evaluate_every": 0, **EPOCHS}
EXPERIMENT = parse(SMALL, CHANGES, "test")
POINTS = ("begun", "computing", "one state", "all states", "record")
"""When to kill in a round: a client half has started, is a second old, one client or all have written their new state,
the round's record is written."""


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

    def begin(self, *options: str) -> Started:
        """Let the operator start the run, or start it again."""
        out = self.folder / f"out-{len(self._commands)}"
        self._commands.append(self.here.begin(out, "--server-out", str(self.server_out), *options))
        return self._commands[-1]

    def done(self) -> int:
        """Return the number of rounds that the server has written down."""
        file = self.server_out / "rounds.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def states(self, round_: int) -> list[Path]:
        """Return the states that clients have written in a round of this run."""
        name = self.server_out / "run-id"
        run = name.read_text(encoding="utf-8").strip() if name.exists() else "none"
        return list((self.here.files / "store" / run).glob(f"client-*.{round_}.safetensors"))

    def wait_for(self, round_: int, point: str, victims: list[str]) -> None:
        """Wait until a round has come to a point, at the victims' machines."""
        wait_until(lambda: self.done() >= round_ - 1, f"round {round_ - 1} is done")
        if point == "record":
            wait_until(lambda: self.done() >= round_, f"round {round_} is done")
        elif "state" in point:
            count = 1 if point == "one state" else len(victims)
            wait_until(lambda: len(self._of(victims, round_)) >= count, f"{count} states of round {round_}")
        else:
            machines = [self.here.folder / victim for victim in victims]
            wait_until(lambda: any(of_machine(m, "flwr-clientapp") for m in machines), f"round {round_} has begun")
            time.sleep(1.0 if point == "computing" else 0.0)

    def _of(self, victims: list[str], round_: int) -> list[Path]:
        return [path for path in self.states(round_) if path.name.partition(".")[0] in victims]

    def ended(self) -> list[dict[str, Any]]:
        """Wait until the last command has ended; return the records of the rounds if the run has completed."""
        last = self._commands[-1]
        assert last.process.wait(900) == 0, last.said
        return read_lines(self.server_out / "rounds.jsonl")


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
        yield running


@pytest.mark.parametrize("kill", KILLS)
def test_a_node_that_is_killed_costs_its_round_and_comes_back_with_its_state(
    here: Federation, kill: int, tmp_path: Path
) -> None:
    victim, point, round_ = here.clients[kill % 3], POINTS[kill % 3], 2 + kill % 2
    killing = Killing(here, tmp_path)
    with timed(f"node {kill}: {victim}, round {round_}, {point}"):
        killing.begin("--set", f"rounds={MANY}")  # the node is away for a minute, and a round takes some seconds
        killing.wait_for(round_, point, [victim])
        assert kill_machine(here.folder / victim) > 1  # its client half too
        here.start_until_let_in(victim)
        rows = killing.ended()

    assert [row["round"] for row in rows] == list(range(1, MANY + 1))
    failed = [row["round"] for row in rows if victim in row["failed"]]
    assert round_ in failed or point == "one state"  # its reply may have been on its way
    assert len(rows[round_ - 1]["participants"]) >= 2, rows
    assert victim in rows[-1]["participants"], rows
    assert not any("afresh" in row for row in rows)
    as_simulated(rows)


@pytest.mark.parametrize("kill", KILLS)
def test_a_server_half_that_is_killed_is_gone_on_with(here: Federation, kill: int, tmp_path: Path) -> None:
    point, round_ = POINTS[kill % len(POINTS)], 1 + kill % (ROUNDS - 1)
    killing = Killing(here, tmp_path)
    with timed(f"server half {kill}: round {round_}, {point}"):
        first = killing.begin()
        killing.wait_for(round_, point, here.clients)
        assert kill_machine(here.folder / "superlink", "flwr-serverapp")
        gone_on_with(killing, first, kill)


@pytest.mark.parametrize("kill", KILLS)
def test_a_superlink_that_is_killed_is_gone_on_with(here: Federation, kill: int, tmp_path: Path) -> None:
    point, round_ = POINTS[kill % len(POINTS)], 1 + kill % (ROUNDS - 1)
    killing = Killing(here, tmp_path)
    with timed(f"SuperLink {kill}: round {round_}, {point}"):
        first = killing.begin()
        killing.wait_for(round_, point, here.clients)
        assert kill_machine(here.folder / "superlink") > 2  # its server half too, as systemd does
        here.script("superlink/start.sh").wait_for(LISTENS)
        gone_on_with(killing, first, kill)


def gone_on_with(killing: Killing, first: Started, kill: int) -> None:
    """Start a run again that was killed, at once or when its first command has ended; expect its one and right end."""
    done = killing.done()
    if kill % 2:
        assert first.process.wait(300) == 1, first.said
    again = killing.begin()
    rows = killing.ended()

    assert first.process.wait(300) == 1, first.said
    assert "the run failed" in first.said
    begun_at = int((again_log(killing).rpartition("going on after round ")[2] or "0").partition(":")[0])
    assert begun_at >= done - 1, "a round more than the one that was going on was done again"
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    as_simulated(rows)
    assert f"digest  {rows[-1]['digest']}" in again.said


def again_log(killing: Killing) -> str:
    return (killing.folder / "out-1" / "flower.log").read_text(encoding="utf-8", errors="replace")
