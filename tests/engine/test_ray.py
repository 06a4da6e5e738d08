"""The Ray grid: the same bits as in this process, whoever dies on the way, and nothing left afterwards."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message
from ray.exceptions import RayError

from fedkd.app.client import TRAIN
from fedkd.app.history import RoundRecord
from fedkd.app.loop import run
from fedkd.app.wire import pack
from fedkd.config import Experiment
from fedkd.engine.grid import SimulationGrid
from fedkd.engine.local import LocalGrid
from fedkd.engine.simulate import simulate
from fedkd.errors import RunError, UserError
from fedkd.flower_internals import ensure_task_identity
from tests.engine.mortals import CPUS, SMALL, mortal, on_ray, outcome
from tests.engine.processes import marked, shared_memory

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_worker_is_left"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # Ray's own
]

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("plan", "numbers"),
    [("one-by-one", [2]), ("cohorts", [1, 2])],  # one worker, one by one: below, where it dies in every round
)
def test_any_number_of_workers_has_the_same_result(plan: str, numbers: list[int]) -> None:
    from fedkd.engine.ray import RayGrid
    from fedkd.engine.simulate import open_grid

    experiment = Experiment(strategy="fedmd", **SMALL, engine={"plan": plan, "cohort_size": 2})
    local = LocalGrid(experiment)
    expected = run(local, experiment)

    for workers in numbers:
        chosen = experiment.changed(**{"engine.workers": workers})
        with open_grid(chosen) as grid:
            assert isinstance(grid, RayGrid)
            finished = run(grid, chosen)
            assert outcome(finished) == outcome(expected)
            if workers < CPUS:
                grid.dismiss_workers()  # the states do not go with them
            for key, version in finished.versions.items():
                theirs, ours = grid.state_of(key, version), local.state_of(key, version)
                assert theirs.keys() == ours.keys()
                assert all(theirs[name].equal(tensor) for name, tensor in ours.items())


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_codecs_give_the_same_result_on_workers(plan: str) -> None:
    codecs = {"up": ["top-k:3", "float16"], "down": ["quantize-rows:4"]}
    experiment = Experiment(strategy="fedmd", **SMALL, engine={"plan": plan}, communication=codecs)
    assert outcome(on_ray(experiment, 2)) == outcome(run(LocalGrid(experiment), experiment))


def test_a_run_that_was_cut_off_goes_on_with_any_number_of_workers(own_strategies: Path, tmp_path: Path) -> None:
    from fedkd import resume, simulate

    def stop(record: RoundRecord) -> None:
        raise InterruptedError

    experiment = mortal(own_strategies / "deaths", culprit="nobody").changed(rounds=3)
    expected = simulate(experiment)
    with pytest.raises(InterruptedError):
        simulate(experiment.changed(**{"engine.workers": 2}), out=tmp_path / "run", on_round=stop)
    with pytest.raises(InterruptedError):
        resume(tmp_path / "run", workers=0, on_round=stop)

    result = resume(tmp_path / "run", workers=1)

    assert [row["digest"] for row in result.rounds] == [row["digest"] for row in expected.rounds]
    assert result.clients == expected.clients


def test_a_death_in_every_round_does_not_show(own_strategies: Path) -> None:
    experiment = mortal(own_strategies / "deaths")
    started = time.monotonic()

    finished = on_ray(experiment, workers=1)

    seconds = time.monotonic() - started
    assert {path.name: path.read_text() for path in (own_strategies / "deaths").iterdir()} == {
        f"round-{k}": "x" for k in (1, 2)
    }
    assert seconds < 90
    assert outcome(finished) == outcome(run(LocalGrid(experiment), experiment))  # the marks are there: nobody dies now
    assert not any(record.failed for record in finished.rounds)


def test_a_client_that_always_kills_its_worker_fails_alone(
    own_strategies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedkd.engine import ray as engine

    assert engine.MAX_DEATHS == 3
    monkeypatch.setattr(engine, "MAX_DEATHS", 2)
    experiment = mortal(own_strategies / "deaths", always=True).changed(**{"rounds": 2, "engine.plan": "cohorts"})

    class Without(LocalGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            asked = [
                m
                for m in messages
                if m.metadata.message_type != TRAIN or self._keys[m.metadata.dst_node_id] != "client-1"
            ]
            return super().send_and_receive(asked)

    finished = on_ray(experiment, workers=1)

    assert (own_strategies / "deaths" / "round-1").read_text() == "xx"
    assert outcome(finished) == outcome(run(Without(experiment), experiment))
    assert list(finished.rounds[0].failed) == ["client-1"]
    assert finished.rounds[0].failed["client-1"].startswith("killed 2 workers (")
    assert [list(record.participants) for record in finished.rounds] == [["client-0", "client-2", "client-3"]] * 2
    # From then on it is in quarantine: it kills nobody in the second round, which names it all the same.
    assert [path.name for path in (own_strategies / "deaths").iterdir()] == ["round-1"]
    assert finished.rounds[1].failed["client-1"].startswith("in quarantine since it killed 2 workers (")


class Mortuary:
    """A pool of one worker, which dies of whatever it is given."""

    def __init__(self) -> None:
        self.given: list[list[str]] = []
        self.queue: list[object] = []

    def __len__(self) -> int:
        return 1

    def least_busy(self, *, idle: bool) -> object:
        return None if self.queue else self

    def give(self, worker: object, tasks: list[Any], objects: list[Any]) -> tuple[object, None, None]:
        self.given.append([task.key for task in tasks])
        self.queue.append(object())
        return self.queue[-1], None, None

    def replace(self, worker: object) -> list[object]:
        lost, self.queue = self.queue, []
        return lost

    def empty_queues(self) -> None:
        self.queue.clear()


def test_a_unit_is_run_again_as_a_whole_before_its_clients_are_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedkd.engine import ray as engine
    from fedkd.engine.ray import RayGrid

    ensure_task_identity()

    def dead(references: object) -> None:
        raise RayError

    monkeypatch.setattr(engine, "ray", SimpleNamespace(wait=lambda refs, **_: (refs, []), get=dead))
    grid: Any = RayGrid.__new__(RayGrid)
    SimulationGrid.__init__(grid, Experiment(**{**SMALL, "strategy": "fedavg", "strategies": {}}))
    grid._pool = pool = Mortuary()
    keys = [f"client-{k}" for k in range(4)]
    unit = [(Message(pack({}), dst_node_id=k, message_type=TRAIN), key) for k, key in enumerate(keys)]

    found = [key for key, reply, state in grid.run_units([unit]) if reply.has_error()]

    assert pool.given == [keys, keys, *([key] for key in keys)]
    assert found == keys


def test_who_is_in_quarantine_stays_there_in_a_run_that_is_gone_on_with(
    own_strategies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedkd import resume
    from fedkd.engine import ray as engine

    def stop(record: RoundRecord) -> None:
        raise InterruptedError

    monkeypatch.setattr(engine, "MAX_DEATHS", 1)
    changes = {"rounds": 3, "engine.workers": 1}
    experiment = mortal(own_strategies / "deaths").changed(**changes)
    with pytest.raises(InterruptedError):
        simulate(experiment, out=tmp_path / "run", on_round=stop)

    rows = resume(tmp_path / "run").rounds

    reasons = [row["failed"]["client-1"] for row in rows]
    assert reasons[0].startswith("killed 1 workers (")
    assert reasons[1:] == [f"in quarantine since it {reasons[0]}"] * 2
    assert [path.name for path in (own_strategies / "deaths").iterdir()] == ["round-1"]


def test_a_client_that_hangs_ends_the_run_in_time(own_strategies: Path) -> None:
    experiment = mortal(own_strategies / "deaths", culprit="nobody", hangs="client-2").changed(
        **{"engine.timeout": 4.0}
    )
    started = time.monotonic()

    with pytest.raises(RunError, match=r"no reply within 4 s from client-2"):
        on_ray(experiment, workers=1)

    assert 4 < time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"engine.workers": 3}, "expected 3 CPU for 3 workers, found 2"),
        ({"engine.workers": 2, "engine.gpus_per_worker": 0.5}, "expected 1 GPU for 2 workers, found 0"),
        ({"engine.workers": 2}, "expected 1e.09 GB of memory for 2 workers, found"),
    ],
)
def test_what_will_never_be_there_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, change: Mapping[str, object], problem: str
) -> None:
    from fedkd.engine import cluster
    from fedkd.engine.ray import RayGrid

    if "memory" in problem:
        monkeypatch.setattr(cluster, "WORKER_BYTES", 5e17)
    with pytest.raises(UserError, match=problem):
        RayGrid(Experiment(strategy="local", **SMALL).changed(**change))


# --- a run that starts Ray itself

SCRIPT = """
import json, os, sys
from pathlib import Path
from fedkd import Experiment, simulate

experiment = Experiment.model_validate_json(Path(sys.argv[1]).read_text())
result = simulate(experiment)
import ray
print(json.dumps({"initialised": ray.is_initialized(), "digest": result.digest, "rounds": list(result.rounds)}))
"""

TALKATIVE = '''
"""Clients that talk, and one that fails."""

import logging
import os
import sys

import torch

from fedkd import losses
from fedkd.strategy import MethodCard, Strategy


class Talkative(Strategy):
    card = MethodCard(title="test", authors="-", year=2026)

    def client_round(self, client, received):
        print(f"{client.card.key} says hello with {torch.get_num_threads()} thread")
        logging.getLogger("mine").warning("%s warns", client.card.key)
        if client.card.key == "client-1":
            raise LookupError("client-1 has lost its data")
        client.fit(client.private, losses.cross_entropy)

    def server_round(self, server, replies):
        pass
'''


def test_a_run_on_its_own_ray_loses_no_word_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "talkative.py").write_text(TALKATIVE, encoding="utf-8")
    (tmp_path / "run.py").write_text(SCRIPT, encoding="utf-8")
    experiment = Experiment(**{**SMALL, "strategy": "talkative", "strategies": {}, "engine": {"workers": 1}})
    (tmp_path / "experiment.json").write_text(experiment.changed(rounds=1).model_dump_json(), encoding="utf-8")
    before = shared_memory()
    mark = f"FEDKD_TEST={tmp_path}"
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **dict([mark.split("=")]),
            "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": folder,
            "SPT_NOENV": "1",  # process titles must not overwrite the mark
        }
        done = subprocess.run(
            [sys.executable, "run.py", "experiment.json"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        left, memory = [*marked(mark).values()], shared_memory() - before

    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    answer = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    for key in ("client-0", "client-1", "client-2", "client-3"):
        assert f"{key} says hello with 1 thread" in said
        assert f"{key} warns" in said
    assert not answer["initialised"]
    assert list(answer["rounds"][0]["participants"]) == ["client-0", "client-2", "client-3"]
    reason = answer["rounds"][0]["failed"]["client-1"]
    assert reason.startswith("Traceback")
    assert reason.endswith("LookupError: client-1 has lost its data")
    assert left == []
    assert memory == set()


def test_mixed_precision_has_the_same_bits_on_workers() -> None:
    experiment = Experiment(strategy="fedmd", **SMALL).changed(**{"train.dtype": "bf16-mixed"})
    assert simulate(experiment.changed(**{"engine.workers": 2})).digest == simulate(experiment).digest
