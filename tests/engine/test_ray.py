"""The Ray grid: the same bits as in this process, whoever dies on the way, and nothing left afterwards."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedkd.app.client import TRAIN
from fedkd.app.history import RoundRecord
from fedkd.app.loop import Run, run
from fedkd.app.wire import PAYLOAD, knowledge_of, pack, without_tensors
from fedkd.config import Experiment
from fedkd.engine.local import LocalGrid
from fedkd.engine.ray import _with_records
from fedkd.engine.simulate import simulate
from fedkd.errors import RunError, UserError
from fedkd.flower_internals import ensure_task_identity
from fedkd.knowledge import Weights
from tests.engine.processes import marked, one_ray, shared_memory

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # Ray's own
]

ROOT = Path(__file__).resolve().parents[2]
CPUS = 2
SMALL: Mapping[str, Any] = {
    "rounds": 2,
    "data": {"public": 40, "validation": 1200, "test": 40},
    "federation": {"clients": 4, "architectures": ("mlp",), "feature_width": 8},
    "train": {"local_epochs": 1},
    "strategies": {"fedmd": {"transfer_epochs": 1}},
}

STRATEGY = '''
"""A strategy of a user's own, whose clients die, fail and print."""

import os
import signal
import time
from pathlib import Path
from typing import final

import torch
from pydantic import Field

from fedkd import ensemble, losses
from fedkd.strategy import MethodCard, Strategy, StrategySettings
from fedkd.knowledge import SoftLabels


@final
class Mortal(Strategy):
    card = MethodCard(title="test", authors="-", year=2026, up=SoftLabels, down=SoftLabels)

    class Settings(StrategySettings):
        folder: str = Field(description="where deaths are noted")
        culprit: str = Field("client-1", description="who dies")
        always: bool = Field(False, description="at every attempt, not only at the first of a round")
        hangs: str = Field("", description="who never comes to an end")

    def client_setup(self, client):
        client.state = {"brain": torch.ones(2, dtype=torch.bfloat16), "turned": torch.arange(6.0).reshape(2, 3).T}

    def client_round(self, client, received):
        if client.card.key == self.settings.culprit:
            died = Path(self.settings.folder) / f"round-{client.round}"
            if self.settings.always or not died.exists():
                with died.open("a") as file:
                    file.write("x")
                    file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        if client.card.key == self.settings.hangs:
            time.sleep(3600)
        client.state["brain"] *= 2
        if received is not None:
            client.fit(client.public(received), losses.logit_mae, epochs=1)
        client.fit(client.private, losses.cross_entropy)
        return client.predict(client.next_public_subset)

    def server_round(self, server, replies):
        return server.soft_labels(ensemble.mean_logits(torch.stack([reply.knowledge.logits for reply in replies])))
'''

HERE_ONLY = """
import os

if os.getpid() != DRIVER:
    raise ImportError("a library that this worker does not have")

from strategies.mortal import Mortal as Base
from fedkd.strategy import Strategy

class HereOnly(Strategy):
    card = Base.card
    client_round = Base.client_round
    server_round = Base.server_round
"""


DIES_AT_START = """
import os
import signal
from pathlib import Path

if os.getpid() != DRIVER and not Path("FOLDER/died").exists():
    Path("FOLDER/died").touch()
    os.kill(os.getpid(), signal.SIGKILL)

from strategies.mortal import Mortal as Base
from fedkd.strategy import Strategy

class DiesAtStart(Strategy):
    card = Base.card
    client_round = Base.client_round
    client_setup = Base.client_setup
    server_round = Base.server_round
    Settings = Base.Settings
"""


@pytest.fixture(scope="module", autouse=True)
def _one_ray_for_all() -> Iterator[None]:
    """Start Ray once; the grids below use it, and must leave it as they found it."""
    with one_ray(CPUS):
        yield


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    yield
    import ray

    assert ray.is_initialized(), "a Ray that was there before must stay"
    deadline = time.monotonic() + 15
    while (free := ray.available_resources().get("CPU", 0)) < CPUS and time.monotonic() < deadline:
        time.sleep(0.1)
    assert free == CPUS


@pytest.fixture
def own_strategies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder with a user's own strategies."""
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "mortal.py").write_text(STRATEGY, encoding="utf-8")
    (tmp_path / "deaths").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("mortal", "here_only", "dies_at_start"):
        sys.modules.pop(f"strategies.{name}", None)


def mortal(folder: Path, **settings: object) -> Experiment:
    return Experiment(**{**SMALL, "strategy": "mortal", "strategies": {"mortal": {"folder": str(folder), **settings}}})


def on_ray(experiment: Experiment, workers: int) -> Run:
    from fedkd.engine.ray import RayGrid

    experiment = experiment.changed(**{"engine.workers": workers})
    with RayGrid(experiment) as grid:
        return run(grid, experiment)


def outcome(finished: Run) -> object:
    named = ("failed", "unmeasured")
    rounds = [
        {**record.to_json(), "seconds": 0, **{name: sorted(getattr(record, name)) for name in named}}
        for record in finished.rounds
    ]
    return rounds, [client.to_json() for client in finished.clients], finished.versions


@pytest.mark.parametrize(
    ("plan", "numbers"),
    [("one-by-one", [2]), ("cohorts", [1, 2])],  # one worker, one by one: below, where it dies in every round
)
def test_any_number_of_workers_has_the_same_result(
    plan: str, numbers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedkd.engine import ray as engine
    from fedkd.engine.simulate import open_grid

    experiment = Experiment(strategy="fedmd", **SMALL, engine={"plan": plan, "cohort_size": 2})
    local = LocalGrid(experiment)
    expected = run(local, experiment)

    for workers in numbers:
        chosen = experiment.changed(**{"engine.workers": workers})
        with open_grid(chosen) as grid:
            assert isinstance(grid, engine.RayGrid)
            finished = run(grid, chosen)
            assert outcome(finished) == outcome(expected)
            if workers < CPUS:
                grid.dismiss_workers()  # the states do not go with them
            for key, version in finished.versions.items():
                theirs, ours = grid.state_of(key, version), local.state_of(key, version)
                assert theirs.keys() == ours.keys()
                assert all(theirs[name].equal(tensor) for name, tensor in ours.items())
            if workers == CPUS:  # there is no room for another worker now
                monkeypatch.setattr(engine, "START_SECONDS", 0.5)
                with pytest.raises(RunError, match="a Ray worker could not be started"):
                    engine.RayGrid(experiment.changed(**{"engine.workers": 1}))


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


def test_a_client_that_hangs_ends_the_run_in_time(own_strategies: Path) -> None:
    experiment = mortal(own_strategies / "deaths", culprit="nobody", hangs="client-2").changed(
        **{"engine.timeout": 4.0}
    )
    started = time.monotonic()

    with pytest.raises(RunError, match=r"no reply within 4 s from client-2"):
        on_ray(experiment, workers=1)

    assert 4 < time.monotonic() - started < 60


def test_a_worker_that_cannot_start_ends_the_run_with_the_cause(own_strategies: Path) -> None:
    text = HERE_ONLY.replace("DRIVER", str(os.getpid()))
    (own_strategies / "strategies" / "here_only.py").write_text(text, encoding="utf-8")
    experiment = Experiment(**{**SMALL, "strategy": "here_only", "strategies": {}})
    started = time.monotonic()

    with pytest.raises(RunError, match="could not be started:") as caught:
        on_ray(experiment, workers=1)

    assert "ImportError: a library that this worker does not have" in str(caught.value)
    assert time.monotonic() - started < 60


def test_a_worker_that_is_killed_while_it_starts_is_replaced(own_strategies: Path) -> None:
    text = DIES_AT_START.replace("DRIVER", str(os.getpid())).replace("FOLDER", str(own_strategies))
    (own_strategies / "strategies" / "dies_at_start.py").write_text(text, encoding="utf-8")
    settings = {"folder": str(own_strategies / "deaths"), "culprit": "nobody"}
    experiment = Experiment(**{**SMALL, "strategy": "dies_at_start", "strategies": {"dies_at_start": settings}})

    finished = on_ray(experiment, workers=1)

    assert (own_strategies / "died").exists()
    assert outcome(finished) == outcome(run(LocalGrid(experiment), experiment))


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


def test_a_payload_without_tensors_stays_a_payload() -> None:
    ensure_task_identity()
    reply, records = without_tensors(Message(pack({}, Weights({})), dst_node_id=0, message_type=TRAIN))
    assert PAYLOAD not in reply.content
    assert knowledge_of(_with_records(reply, list(records), {}).content) == Weights({})


def test_mixed_precision_has_the_same_bits_on_workers() -> None:
    experiment = Experiment(strategy="fedmd", **SMALL).changed(**{"train.dtype": "bf16-mixed"})
    assert simulate(experiment.changed(**{"engine.workers": 2})).digest == simulate(experiment).digest
