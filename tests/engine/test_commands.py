"""Flower's commands: what they answer, and how a run's end becomes an error that names the cause."""

import json
import stat
import time
from pathlib import Path

import pytest

from fedkd.engine import commands as module
from fedkd.engine.commands import CONNECTION, Commands
from fedkd.errors import LostSightError, RunError
from tests.engine.processes import wait_until

FAKE = """#!/bin/sh
fails() { left=$(cat "$FAKE_LOG.$1" 2>/dev/null || echo 0); echo $((left - 1)) > "$FAKE_LOG.$1"; [ "$left" -gt 0 ]; }
case "$1" in
    run) echo 'INFO : colourful'; printf '{"success": true, "run-id": "17"}' ;;
    log) cat "$FAKE_LOG"; fails log && exit 1; exit 0 ;;
    list) fails list && { echo 'Connection to the SuperLink is unavailable.'; exit 1; }; cat "$FAKE_ANSWER" ;;
    *) echo "unknown command $1"; exit 2 ;;
esac
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put a program in the place of flwr: it says what the test wrote down."""
    program = tmp_path / "bin" / "flwr"
    program.parent.mkdir()
    program.write_text(FAKE, encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr("fedkd.engine.commands.sysconfig.get_path", lambda name: str(program.parent))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FAKE_ANSWER", str(tmp_path / "answer"))

    def says(log, status, details=""):
        (tmp_path / "log").write_text(log, encoding="utf-8")
        runs = [{"status": status, "status-details": details}]
        (tmp_path / "answer").write_text(json.dumps({"success": True, "runs": runs}), encoding="utf-8")

    return says


@pytest.fixture
def commands(tmp_path):
    with (tmp_path / "run.log").open("wb") as output:
        made = Commands(output, {"address": "127.0.0.1:1", "insecure": True})
        yield made
        made.stop()


def test_a_run_is_submitted_and_followed_to_its_end(fake, commands, tmp_path):
    fake("round 1\n", "finished:completed")
    polled = []

    run_id = commands.submit(tmp_path)
    commands.watch(run_id, on_poll=lambda: polled.append((tmp_path / "run.log").read_text(encoding="utf-8")))

    assert run_id == "17"
    assert polled[-1] == "round 1\n", "asked once more when all of the log is there"


def test_a_failed_run_is_an_error_with_the_last_traceback(fake, commands):
    log = "Traceback (most recent call last):\n  old\nValueError: first\nTraceback (most recent call last):\n"
    fake(f"{log}  file\nLookupError: no teacher\nERROR :  exit\n", "finished:failed", "it raised")

    with pytest.raises(RunError) as caught:
        commands.watch("17")

    said = str(caught.value).splitlines()
    assert said[0] == "the Flower run ended as finished:failed: it raised"
    assert said[1:4] == ["Traceback (most recent call last):", "  file", "LookupError: no teacher"]
    assert said[4].startswith("The whole log is in ")


def test_a_run_that_was_stopped_is_an_error(fake, commands):
    fake("", "finished:stopped", "by somebody")

    with pytest.raises(RunError, match="finished:stopped: by somebody"):
        commands.watch("17")


def test_a_run_that_takes_too_long_is_an_error(fake, commands):
    fake("", "running")

    with pytest.raises(RunError, match="did not finish in time"):
        commands.watch("17", timeout=0.5)


@pytest.fixture
def fails(tmp_path, monkeypatch):
    """Let a command fail so many times, and make the pauses short."""
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    return lambda command, times: (tmp_path / f"log.{command}").write_text(f"{times}\n", encoding="utf-8")


def test_a_superlink_that_answers_again_is_no_failure_of_the_run(fake, commands, fails, tmp_path):
    fake("round 1\n", "finished:completed")
    fails("list", 3)

    commands.watch("17", patience=60)

    assert (tmp_path / "log.list").read_text(encoding="utf-8") == "-1\n", "asked until the fourth, which answered"


def test_a_log_that_broke_off_is_copied_again_even_if_the_run_has_ended_meanwhile(fake, commands, fails, tmp_path):
    fake("round 1\n", "finished:completed")
    fails("log", 2)

    commands.watch("17", patience=60)

    assert (tmp_path / "run.log").read_text(encoding="utf-8") == "round 1\n" * 3


def test_a_run_out_of_sight_is_not_called_failed(fake, commands, fails):
    fake("", "running")
    fails("list", 1000)

    with pytest.raises(LostSightError) as lost:
        commands.watch("17", patience=0.2)

    assert str(lost.value).startswith("lost sight of run 17, which may go on; asked for 0 s, and `flwr list` failed: ")
    assert str(lost.value).endswith("Connection to the SuperLink is unavailable"), "more may be said after it"
    assert "\n" not in str(lost.value)


def test_without_patience_a_silent_superlink_ends_it(fake, commands, fails):
    fake("", "running")
    fails("list", 1000)

    with pytest.raises(RunError) as failed:
        commands.watch("17")

    assert not isinstance(failed.value, LostSightError)


def test_a_command_that_fails_says_what_flower_said(fake, commands):
    with pytest.raises(RunError, match=r"`flwr stop` failed: unknown command stop"):
        commands.ask("stop", "17", CONNECTION)


def test_a_command_that_does_not_answer_is_given_up(fake, commands, monkeypatch, tmp_path):
    monkeypatch.setattr("fedkd.engine.commands.ANSWER_SECONDS", 0.2)
    (tmp_path / "bin" / "flwr").write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    started = time.monotonic()
    with pytest.raises(RunError, match=r"`flwr list` did not answer within 0.2 s"):
        commands.ask("list", CONNECTION)
    with pytest.raises(LostSightError, match="lost sight of run 17"):
        commands._find("17", patience=0.3)
    assert time.monotonic() - started < 10


def test_nothing_is_left(fake, tmp_path):
    with (tmp_path / "run.log").open("wb") as output:
        made = Commands(output, {"address": "fed.example.org:8000", "root-certificates": "/ca.crt"})
        sleeper = made.start(["sleep", "600"], output)
        home = Path(dict(line.split("=", 1) for line in environment(sleeper.pid))["FLWR_HOME"])
        written = (home / "config.toml").read_text(encoding="utf-8")
        made.stop()

    assert f'[superlink.{CONNECTION}]\naddress = "fed.example.org:8000"\nroot-certificates = "/ca.crt"' in written
    assert sleeper.poll() is not None
    assert not home.exists()


def environment(pid: int) -> list[str]:
    """Return a program's environment, which is empty for a moment when it begins."""
    file = Path(f"/proc/{pid}/environ")
    assert wait_until(lambda: bool(file.read_bytes()), 10.0) is not None
    return [line for line in file.read_bytes().decode().split("\0") if "=" in line]


def test_the_commands_never_join_a_running_cluster_nor_report_home(fake, commands, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    found = environment(commands.start(["sleep", "1"], commands.output).pid)

    assert not [line for line in found if line.startswith("RAY_ADDRESS=")]
    assert "FLWR_TELEMETRY_ENABLED=0" in found
