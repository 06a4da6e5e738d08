"""Workers that are killed from outside, in every round: the bits of a run in which nobody is."""

import os
import random
import threading
from collections.abc import Sequence

import pytest

from fedkd.app.history import RoundRecord
from fedkd.engine.simulate import simulate
from tests.engine.processes import LONG_ROUNDS, kill, tree, wait_until, workers_among

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # Ray's own
]

ROUNDS = 10
WORKERS = 2
ROUND_SECONDS = 180.0
"""Within which all workers must be at work again, on a machine that does other things as well."""


def at_work() -> list[int]:
    """Return the workers of this process's Ray that are at work on a unit."""
    return workers_among(tree(os.getpid()))


class Killer(threading.Thread):
    """Kills workers once in every round, at some moment at which they all are at work."""

    def __init__(self, number: int) -> None:
        super().__init__(daemon=True)
        self.killed: list[Sequence[int]] = []  # process ids, by round
        self._number = number
        self._source = random.Random(number)  # noqa: S311 - no secret
        self._begun = threading.Semaphore(1)  # rounds that began and were not disturbed yet
        self._over = False

    def run(self) -> None:
        while self._begun.acquire() and not self._over:
            wait_until(lambda: len(at_work()) == WORKERS or self._over, ROUND_SECONDS)
            wait_until(lambda: False, self._source.uniform(0, 0.1))
            found: list[int] = []
            while len(found) < self._number and not self._over:  # meanwhile some may have ended a unit
                found = at_work()
            chosen = self._source.sample(found, min(self._number, len(found)))
            kill(*chosen)
            self.killed.append(chosen)

    def after_round(self, record: RoundRecord) -> None:
        assert len(self.killed) == record.round, "a round was over before anybody was killed"
        self._begun.release()

    def end(self) -> None:
        self._over = True
        self._begun.release()
        self.join()


@pytest.mark.parametrize("number", [1, WORKERS], ids=["one", "all"])
@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_workers_that_are_killed_in_every_round_do_not_show(plan: str, number: int) -> None:
    experiment = LONG_ROUNDS.changed(**{"rounds": ROUNDS, "engine.plan": plan, "engine.cohort_size": 2})
    expected = simulate(experiment)
    killer = Killer(number)
    killer.start()
    try:
        result = simulate(experiment.changed(**{"engine.workers": WORKERS}), on_round=killer.after_round)
    finally:
        killer.end()

    assert [len(processes) for processes in killer.killed[:ROUNDS]] == [number] * ROUNDS
    assert len({process for processes in killer.killed for process in processes}) == number * ROUNDS
    assert [row["digest"] for row in result.rounds] == [row["digest"] for row in expected.rounds]
    assert result.digest == expected.digest
    assert not any(row["failed"] or row["unmeasured"] for row in result.rounds)
