"""``fedkd deploy run``: what it refuses, what it writes, and how it ends; Flower is a stand-in here."""

import json
import os
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from fedkd.app.announce import announcer
from fedkd.app.run_folder import read_lines
from fedkd.config import Experiment
from fedkd.deploy import run as deployed
from fedkd.deploy.run import Connection
from fedkd.engine.commands import failure
from fedkd.engine.interrupts import stop_in_order
from fedkd.errors import LostSightError, RunError, UserError

OWN = Experiment(
    strategy="fedmd", rounds=2, federation={"partition": "own", "clients": 2}, data={"name": "there/commons.npz"}
)
ROUND = {"seconds": 1.0, "participants": {"a": 3}, "failed": {}, "bytes_up": {}, "bytes_down": {}, "digest": "d"}
SUMMARY = {"strategy": "fedmd", "digest": "d2"}


class Flower:
    """In the place of Flower's commands: announces what a server would."""

    def __init__(self, output, entry):
        self.output, self.entry, self.asked = output, entry, []
        self.stopped = False

    def submit(self, app):
        self.project = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
        return "17"

    def watch(self, run_id, patience, on_poll):
        self.patience = patience
        announce = announcer(lambda line: self.output.write(line.encode()))
        for number in (1, 2, 2):  # a log that is fetched again
            announce("round", {**ROUND, "round": number})
            self.output.flush()
            on_poll()
        self.end(announce)
        self.output.flush()

    def end(self, announce):
        for kind, values in {"manifest": {"fedkd": "1"}, "client": {"client": "a"}, "folder": {"path": "/x"}}.items():
            announce(kind, values)
        announce("summary", SUMMARY)

    def ask(self, *command):
        self.asked.append(command)

    def stop(self):
        self.stopped = True


@pytest.fixture
def flower(monkeypatch):
    """Return what was made in the place of Flower's commands, and let a test change it."""
    made = []

    def put(kind=Flower):
        def make(output, entry):
            made.append(kind(output, entry))
            return made[-1]

        monkeypatch.setattr(deployed, "Commands", make)
        return made

    return put


@pytest.fixture
def handlers():
    """Put the signals' handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def connection() -> Connection:
    return Connection.checked("127.0.0.1:9000", None, insecure_on_purpose=False)


def test_a_run_is_told_round_by_round_and_brought_home(flower, tmp_path):
    made, told = flower(), []

    summary = deployed.run(OWN, connection(), tmp_path / "out", "there/run", told.append)

    assert summary == {**SUMMARY, "folder": "/x"}
    assert [record.round for record in told] == [1, 2]
    config = made[0].project["tool"]["flwr"]["app"]["config"]
    assert config["out"] == "there/run"
    assert tomllib.loads(config["experiment"])["data"]["name"] == "there/commons.npz", "a path of other machines"
    assert [row["round"] for row in read_lines(tmp_path / "out" / "rounds.jsonl")] == [1, 2]
    assert read_lines(tmp_path / "out" / "clients.jsonl") == [{"client": "a"}]
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8")) == SUMMARY
    assert made[0].stopped


def test_a_run_without_a_result_is_an_error(flower, tmp_path):
    class Early(Flower):
        def end(self, announce):
            pass

    flower(Early)

    with pytest.raises(RunError, match=r"ended without a result\.\nThe whole log is in .*flower\.log"):
        deployed.run(OWN, connection(), tmp_path / "out")

    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize(
    ("server_out", "what_now"),
    [
        (
            "there/run",
            "; when the SuperLink answers again, start the same run with --server-out there/run and a new --out",
        ),
        ("", "; its results are on the SuperLink's machine, in runs/ beside its start.sh"),
    ],
)
def test_a_run_out_of_sight_is_left_alone_and_the_operator_told_what_to_do(flower, tmp_path, server_out, what_now):
    class OutOfSight(Flower):
        def end(self, announce):
            raise LostSightError("lost sight of run 17")

    made = flower(OutOfSight)

    with pytest.raises(LostSightError) as lost:
        deployed.run(OWN, connection(), tmp_path / "out", server_out)

    assert what_now in str(lost.value)
    assert "\n" not in str(lost.value)
    assert made[0].patience >= 60, "minutes, not seconds"
    assert made[0].asked == [], "it may go on: nothing stops it"


@pytest.mark.parametrize(
    ("cause", "expected"), [(subprocess.TimeoutExpired("flwr", 300), LostSightError), (OSError(), RunError)]
)
def test_a_superlink_that_does_not_answer_may_have_started_the_run(flower, tmp_path, cause, expected):
    class Silent(Flower):
        def submit(self, app):
            raise RunError("`flwr run` did not answer") from cause

    flower(Silent)

    with pytest.raises(expected) as lost:
        deployed.run(OWN, connection(), tmp_path / "out", "there/run")

    assert ("may have started the run all the same; when" in str(lost.value)) == (expected is LostSightError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunError("no teacher"), LostSightError("of run 17"), OSError()])
def test_what_finished_is_brought_home_whatever_the_end(flower, tmp_path, error):
    class Ended(Flower):
        def end(self, announce):
            announce("manifest", {"fedkd": "1"})
            self.output.flush()
            raise error

    flower(Ended)

    with pytest.raises(type(error)):
        deployed.run(OWN, connection(), tmp_path / "out")

    assert [row["round"] for row in read_lines(tmp_path / "out" / "rounds.jsonl")] == [1, 2]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")) == {"fedkd": "1"}
    assert not (tmp_path / "out" / "summary.json").exists(), "it says that a run is complete"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_operator_who_interrupts_while_the_run_is_submitted_stops_it_too(flower, tmp_path, how, handlers):
    class Slow(Flower):
        def submit(self, app):
            os.kill(os.getpid(), how)
            time.sleep(0.05)  # in which Python handles it
            return super().submit(app)

        def watch(self, run_id, patience, on_poll):
            raise AssertionError("nobody waits for it any more")

    made = flower(Slow)
    stop_in_order()

    with pytest.raises(KeyboardInterrupt) as stopped:
        deployed.run(OWN, connection(), tmp_path / "out")

    assert stopped.value.__notes__ == ["run 17 was stopped at the SuperLink"]
    assert made[0].asked == [("stop", "17", "fedkd")]
    assert made[0].stopped


def test_a_run_that_nobody_took_is_not_stopped(flower, tmp_path):
    class Refusing(Flower):
        def submit(self, app):
            raise KeyboardInterrupt

    made = flower(Refusing)

    with pytest.raises(KeyboardInterrupt) as stopped:
        deployed.run(OWN, connection(), tmp_path / "out")

    assert stopped.value.__notes__ == ["no run was started"]
    assert made[0].asked == []


def test_an_interrupted_operator_stops_the_run(flower, tmp_path):
    class Interrupted(Flower):
        def watch(self, run_id, patience, on_poll):
            raise KeyboardInterrupt

        def ask(self, *command):
            super().ask(*command)
            raise RunError("no SuperLink")

    made = flower(Interrupted)

    with pytest.raises(KeyboardInterrupt) as stopped:
        deployed.run(OWN, connection(), tmp_path / "out")

    assert stopped.value.__notes__ == ["run 17 could not be stopped at the SuperLink, and may go on: no SuperLink"]
    assert made[0].asked == [("stop", "17", "fedkd")]
    assert made[0].stopped


def test_who_takes_part_is_told_between_the_rounds_and_each_line_once(flower, tmp_path):
    class Talking(Flower):
        def watch(self, run_id, patience, on_poll):
            announce = announcer(lambda line: self.output.write(line.encode()))
            said = [("told", {"number": 1, "text": "waiting for clients: 0 of 2 are there"})]
            said += [("told", {"number": 2, "text": "takes part: a"}), ("round", {**ROUND, "round": 1})]
            said += [("told", {"number": 3, "text": "is not there: a"}), ("round", {**ROUND, "round": 2})]
            said += [("told", {"number": 4, "text": "is not there: a"})]
            for kind, values in [*said[:2], *said]:  # a log that is fetched again
                announce(kind, values)
                self.output.flush()
                on_poll()
            self.end(announce)

    flower(Talking)
    told = []

    deployed.run(OWN, connection(), tmp_path / "out", "", lambda record: told.append(record.round), told.append)

    first = ["waiting for clients: 0 of 2 are there", "takes part: a"]
    assert told == [*first, 1, "is not there: a", 2, "is not there: a"]


@pytest.mark.parametrize("ends", [RunError("the Flower run ended as finished:failed: it raised\nTraceback"), None])
def test_a_cause_that_the_server_has_announced_is_said_once_and_alone(flower, tmp_path, ends):
    class Failing(Flower):
        def end(self, announce):
            announce("failed", {"text": "no client can take part.\nnode 7: client-1: code: expected x"})
            self.output.flush()
            if ends:
                raise ends

    flower(Failing)

    with pytest.raises(RunError) as failed:
        deployed.run(OWN, connection(), tmp_path / "out")

    assert str(failed.value).splitlines() == [
        "no client can take part.",
        "node 7: client-1: code: expected x",
        f"The whole log is in {tmp_path / 'out' / 'flower.log'}.",
    ]


ENDED = "the Flower run ended as finished:failed: "
HEARTBEAT = f"{ENDED}No heartbeat received from the task"
TRACE = ["Traceback (most recent call last):", *["  in a file"] * 30, "ImportError: no \x1b]0;torch\x07"]
SHOWN = ["Traceback (most recent call last):", *["  in a file"] * 18, "ImportError: no  ]0;torch "]
KEPT = "It is kept up to round 2: when the cause is gone, start the same run again with --server-out /srv/runs/first"


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("problem", "log", "shown"),
    [
        (HEARTBEAT, ["MARK round {}", "+-- Connection to the SuperLink is unavailable --+"], []),
        (HEARTBEAT, TRACE, []),  # a client's: a server that was killed leaves none
        (f"{ENDED}Unhandled exception", TRACE, SHOWN),
        (f"{ENDED}Unhandled exception", ["MARK round {}"], []),
    ],
)
def test_a_run_that_flower_has_lost_says_how_to_go_on(flower, tmp_path, problem, log, shown, kept):
    class Lost(Flower):
        def end(self, announce):
            announce("folder", {"path": "/srv/runs/first"})
            if kept:
                announce("kept", {"round": 2})
            self.output.write("\n".join([*log, ""]).replace("MARK", "0123456789abcdef").encode())
            self.output.flush()
            raise failure(problem, self.output)

    flower(Lost)

    with pytest.raises(RunError) as lost:
        deployed.run(OWN, connection(), tmp_path / "out")

    whole = f"The whole log is in {tmp_path / 'out' / 'flower.log'}."
    assert str(lost.value).splitlines() == [problem, *shown, *([f"{KEPT} and a new --out."] if kept else []), whole]


def test_a_run_that_is_another_one_than_its_folder_says_is_a_mistake(flower, tmp_path):
    class Refused(Flower):
        def end(self, announce):
            announce("failed", {"text": "runs/first/experiment.toml: rounds: expected ...", "mistake": True})
            self.output.flush()
            raise RunError("the Flower run ended as finished:failed")

    flower(Refused)

    with pytest.raises(UserError, match=r"^runs/first/experiment\.toml: rounds: expected"):
        deployed.run(OWN, connection(), tmp_path / "out")


def test_a_cause_that_is_shown_moves_no_terminal_and_has_an_end(flower, tmp_path):
    class Failing(Flower):
        def end(self, announce):
            announce("failed", {"text": "\n".join(["first\x1b[2J", *["x" * 2000] * 200, "last\x1b]0;owned\x07"])})
            self.output.flush()

    flower(Failing)

    with pytest.raises(RunError) as failed:
        deployed.run(OWN, connection(), tmp_path / "out")

    lines = str(failed.value).splitlines()
    assert (lines[0], lines[-2]) == ("first [2J", "last ]0;owned ")
    assert len(lines) == 62
    assert all(line.isprintable() and len(line) <= 600 for line in lines[:-1])


def test_keys_that_a_deployment_does_not_use_are_known():
    given = ["engine.workers=4", "engine.timeout=5", "engine.address = 'auto'", "rounds=3", "engine.workers=8"]
    assert deployed.unused(given) == ["engine.workers", "engine.address"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"federation.partition": "dirichlet"}, "expected 'own', where every node has its samples, found 'dirichlet'"),
        ({"strategy": "fedmb"}, "did you mean 'fedmd'"),
        ({"strategies.fedmd": {"digest_epoch": 3}}, "digest_epoch"),
    ],
)
def test_what_no_deployment_can_run_is_refused_before_anybody_is_asked(flower, tmp_path, changes, problem):
    made = flower()

    with pytest.raises(UserError, match=problem):
        deployed.run(OWN.changed(**changes), connection(), tmp_path / "out")

    assert not made
    assert not (tmp_path / "out").exists()


def test_plain_text_stays_on_this_machine_unless_somebody_says_so(tmp_path):
    (tmp_path / "ca.crt").write_text("x", encoding="utf-8")

    assert connection().entry() == {"address": "127.0.0.1:9000", "insecure": True}
    with pytest.raises(UserError, match=r"fed\.example\.org:8000: expected TLS"):
        Connection.checked("fed.example.org", None, insecure_on_purpose=False)
    assert Connection.checked("fed.example.org", None, insecure_on_purpose=True).entry()["insecure"]
    safe = Connection.checked("fed.example.org", tmp_path / "ca.crt", insecure_on_purpose=False)
    assert safe.entry() == {"address": "fed.example.org:8000", "root-certificates": str(tmp_path / "ca.crt")}
    with pytest.raises(UserError, match="--root-certificates: expected a file"):
        Connection.checked("fed.example.org", Path("none.crt"), insecure_on_purpose=False)
