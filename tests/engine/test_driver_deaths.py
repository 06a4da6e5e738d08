"""A driver with Ray workers that is killed: nothing of it is left, and what it had done is gone on with."""

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedkd.app.run_folder import read_lines
from fedkd.engine.resume import read_cut_off
from fedkd.engine.simulate import simulate
from tests.engine.processes import LONG_ROUNDS, Place, Remains, place, wait_until, workers_among

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DEATHS = int(os.environ.get("FEDKD_DRIVER_DEATHS", "2"))
"""Runs that are killed and gone on with; the figure of 50 was taken with FEDKD_DRIVER_DEATHS=50."""
ROUNDS = 6
START_SECONDS = 180.0
"""Within which a driver must have got to its first rounds, on a machine that does other things as well."""
GROUP_SECONDS, ALONE_SECONDS = 10.0, 90.0
"""Within which nothing may be left: of a whole process group, and of a driver that was killed alone."""

EXPERIMENT = LONG_ROUNDS.changed(**{"rounds": ROUNDS, "engine.workers": 2})


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT.to_toml(), encoding="utf-8")
    with place(str(tmp_path)) as found:
        yield found


def cut_off(ground: Place, folder: Path, source: random.Random, *, alone: bool) -> float | None:
    """Run until some moment of some round and kill the driver; return the seconds until nothing was left."""
    records = folder / "rounds.jsonl"
    driver = ground.start("run", folder.parent / "experiment.toml", "--out", folder, "--json")
    reached = source.randrange(1, ROUNDS - 1)
    assert wait_until(lambda: len(read_lines(records)) >= reached, START_SECONDS) is not None
    wait_until(lambda: False, source.uniform(0, 0.4))
    assert (
        len(workers_among(ground.remains().processes)) == EXPERIMENT.engine.workers
    )  # they are seen while they are there
    (os.kill if alone else os.killpg)(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    return wait_until(lambda: not ground.remains(), ALONE_SECONDS if alone else GROUP_SECONDS)


def rounds_redone(folder: Path) -> int:
    return len(read_lines(folder / "rounds.jsonl")) - len(read_cut_off(folder).records)


def digests(folder: Path) -> list[str]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return [row["digest"] for row in read_lines(folder / "rounds.jsonl")] + [summary["digest"]]


def test_a_group_that_is_killed_leaves_nothing_and_is_gone_on_with(
    tmp_path: Path, ground: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(EXPERIMENT.changed(**{"engine.workers": 0}), out=tmp_path / "whole")
    source, rows = random.Random(DEATHS), list[tuple[float | None, Remains, int, bool]]()  # noqa: S311 - no secret

    for number in range(DEATHS):
        folder = tmp_path / f"killed-{number}"
        seconds = cut_off(ground, folder, source, alone=False)
        left, redone = ground.remains(), rounds_redone(folder)
        workers = number % 2 * EXPERIMENT.engine.workers  # every other time without Ray, which starts sooner
        ended = ground.start("resume", folder, "--workers", str(workers), "--json").wait(timeout=START_SECONDS)
        rows.append((seconds, left, redone, ended == 0 and digests(folder) == digests(tmp_path / "whole")))
        with capsys.disabled():
            print(f"\n{number}: {seconds} s until nothing was left, {redone} redone, equal: {rows[-1][3]}")  # noqa: T201

    assert [number for number, row in enumerate(rows) if not row[3]] == []
    assert max(redone for _, _, redone, _ in rows) <= 1
    assert [left for seconds, left, _, _ in rows if seconds is None] == []


def test_a_driver_that_is_killed_alone_takes_its_ray_with_it(tmp_path: Path, ground: Place) -> None:
    seconds = cut_off(ground, tmp_path / "killed", random.Random(0), alone=True)  # noqa: S311

    assert seconds is not None, ground.remains()
