"""A run that is killed at any moment, and gone on with, ends as if nothing had been."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedkd.app.run_folder import read_lines
from fedkd.config import Experiment
from fedkd.engine.simulate import simulate
from tests.engine.cutting import SMALL, assert_nothing_is_left_over, left
from tests.house import ROOT

DRIVER = """
import os, sys
from pathlib import Path
from fedkd import config
from fedkd.data.federation import build
from fedkd.engine.resume import resume
from fedkd.engine.simulate import simulate

file, folder = Path(sys.argv[1]), Path(sys.argv[2])
build(config.load(file))  # what is imported and loaded once serves every driver
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.setsid()
        print(os.getpid(), flush=True)
        resume(folder) if line == "resume\\n" else simulate(config.load(file), out=folder)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@contextmanager
def drivers(experiment: Experiment, folder: Path) -> Iterator[Callable[[str], tuple[int, Callable[[], int]]]]:
    """Give what starts a driver in a process group of its own; it returns the group, and what waits for its end."""
    file = folder.with_suffix(".toml")
    file.write_text(experiment.to_toml(), encoding="utf-8")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", DRIVER, str(file), str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        to, back = process.stdin, process.stdout
        assert to is not None
        assert back is not None

        def start(word: str) -> tuple[int, Callable[[], int]]:
            to.write(f"{word}\n")
            to.flush()
            return int(back.readline()), lambda: int(back.readline())

        yield start
        to.close()


@contextmanager
def programs(experiment: Experiment, folder: Path) -> Iterator[Callable[[str], tuple[int, Callable[[], int]]]]:
    """Give the same for the command line."""
    file = folder.with_suffix(".toml")
    file.write_text(experiment.to_toml(), encoding="utf-8")
    words = {"run": ["run", str(file), "--out", str(folder)], "resume": ["resume", str(folder)]}

    def start(word: str) -> tuple[int, Callable[[], int]]:
        command = [sys.executable, "-m", "fedkd", *words[word], "--json"]
        process = subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return process.pid, process.wait

    yield start


def kill_and_resume(folder: Path, start: Callable[[str], tuple[int, Callable[[], int]]], kills: int) -> list[int]:
    """Run and resume, and kill the process group at random moments; return the rounds that were done at each death."""
    source = random.Random(kills)  # noqa: S311 - no secret
    rounds, deaths = folder / "rounds.jsonl", list[int]()
    while not (folder / "summary.json").exists():
        done = len(read_lines(rounds))
        group, wait = start("resume" if done else "run")
        if len(deaths) < kills:
            deadline = time.monotonic() + 60
            while len(read_lines(rounds)) < max(2, done + 1) and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(source.uniform(0, 0.1))
            os.killpg(group, signal.SIGKILL)
        if status := wait():
            assert abs(status) == signal.SIGKILL
            deaths.append(len(read_lines(rounds)))
    return deaths


@pytest.mark.parametrize(
    ("kind", "kills"), [(drivers, 3), pytest.param(programs, 10, marks=pytest.mark.slow)], ids=["drivers", "programs"]
)
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_been(
    tmp_path: Path, kind: Any, kills: int
) -> None:
    experiment = Experiment(strategy="fedmd", **SMALL).changed(rounds=10 * kills)
    simulate(experiment, out=tmp_path / "whole")

    with kind(experiment, tmp_path / "killed") as start:
        deaths = kill_and_resume(tmp_path / "killed", start, kills)

    assert len(deaths) == kills, f"too few: {deaths}"
    assert left(tmp_path / "killed") == left(tmp_path / "whole")
    assert_nothing_is_left_over(tmp_path / "killed")
