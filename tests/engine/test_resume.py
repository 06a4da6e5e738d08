"""Going on with a run that was cut off: the same end, bit for bit, wherever and however it was cut."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fedkd
from fedkd import config
from fedkd.app import going_on as module
from fedkd.app.history import RoundRecord
from fedkd.app.run_folder import locked, read_lines
from fedkd.config import Experiment
from fedkd.engine.resume import read_cut_off, resume
from fedkd.engine.simulate import simulate
from fedkd.errors import RunError, UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL: Mapping[str, Any] = {
    "rounds": 5,
    "data": {"public": 40, "public_per_round": 30, "validation": 1200, "test": 40},
    "federation": {"clients": 4, "architectures": ("mlp", "linear"), "feature_width": 8, "min_samples": 5},
    "train": {"local_epochs": 1},
    "strategies": {"feddf": {"distil_epochs": 1}, "fedmd": {"transfer_epochs": 1, "digest_epochs": 1}},
}
KEEPER = '''
"""A strategy whose clients and server keep tensors of unusual types, and whose set-up must not run twice."""

from typing import final

import torch

from fedkd import losses
from fedkd.knowledge import SoftLabels
from fedkd.strategy import MethodCard, Strategy


@final
class Keeper(Strategy):
    card = MethodCard(title="test", authors="-", year=2026, up=SoftLabels, down=SoftLabels)

    def client_setup(self, client):
        client.state = {"brain": torch.ones(2, dtype=torch.bfloat16), "count": torch.tensor(0)}

    def client_round(self, client, received):
        client.state["brain"] *= 1.5
        client.state["count"] += 1
        client.fit(client.private, losses.cross_entropy)
        return client.predict(client.next_public_subset)

    def server_setup(self, server):
        server.state = {"z": torch.rand(3), "a": torch.zeros((), dtype=torch.bfloat16)}

    def server_round(self, server, replies):
        server.state["a"] += 1
        server.state[f"round-{server.round}"] = torch.rand(2)
        return server.soft_labels(sum(tensor.sum() for tensor in server.state.values()) + replies[0].knowledge.logits)
'''


class Cut(Exception):
    """Ends a run from outside."""


def cut_after(round_: int) -> Callable[[RoundRecord], None]:
    def stop(record: RoundRecord) -> None:
        if record.round == round_:
            raise Cut

    return stop


def cut_off(experiment: Experiment, folder: Path, round_: int) -> Path:
    with pytest.raises(Cut):
        simulate(experiment, out=folder, on_round=cut_after(round_))
    return folder


def left(folder: Path) -> dict[str, object]:
    """Return all that a run leaves but times and checkpoints, by file name."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(("checkpoints/", "experiment", "report")):
            found[name] = path.read_bytes()
    found["rounds.jsonl"] = [{**row, "seconds": 0} for row in read_lines(folder / "rounds.jsonl")]
    found["summary.json"] = {**json.loads((folder / "summary.json").read_text(encoding="utf-8")), "seconds": 0}
    return found


def assert_nothing_is_left_over(folder: Path) -> None:
    assert not [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    assert len(list((folder / "checkpoints").iterdir())) <= 2


@pytest.fixture
def own_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "keeper.py").write_text(KEEPER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


# --- the same end


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
@pytest.mark.parametrize("strategy", ["fedmd", "feddf", "fd", "fml", "fedproto", "centralized"])
def test_a_run_that_was_cut_off_ends_like_one_that_was_not(tmp_path: Path, strategy: str, plan: str) -> None:
    experiment = Experiment(strategy=strategy, **SMALL, engine={"plan": plan})
    whole = simulate(experiment, out=tmp_path / "whole")
    folder = cut_off(experiment, tmp_path / "cut", 2)
    before = (folder / "rounds.jsonl").read_bytes()
    told: list[int] = []

    with pytest.raises(Cut):  # a second time
        resume(folder, on_round=cut_after(3))
    result = fedkd.resume(folder, on_round=lambda record: told.append(record.round))

    assert told == [4, 5]
    assert result.digest == whole.digest
    assert left(folder) == left(tmp_path / "whole")
    assert (folder / "rounds.jsonl").read_bytes().startswith(before)
    assert [row["digest"] for row in result.rounds] == [row["digest"] for row in whole.rounds]
    assert result.clients == whole.clients
    assert result.summary["seconds"] >= sum(row["seconds"] for row in result.rounds) - 0.01
    assert_nothing_is_left_over(folder)


@pytest.mark.parametrize("strategy", ["fedmd", "fml"])
def test_codecs_do_not_show_where_it_was_cut(tmp_path: Path, strategy: str) -> None:
    experiment = Experiment(strategy=strategy, **SMALL, communication={"up": ["quantize:5"], "down": ["float16"]})
    simulate(experiment, out=tmp_path / "whole")

    resume(cut_off(experiment, tmp_path / "cut", 2))

    assert left(tmp_path / "cut") == left(tmp_path / "whole")


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5])
def test_bfloat16_and_set_up_survive_wherever_it_was_cut(tmp_path: Path, own_strategy: None, cut: int) -> None:
    experiment = Experiment(strategy="keeper", **SMALL)
    simulate(experiment, out=tmp_path / "whole")

    resume(cut_off(experiment, tmp_path / "cut", cut))

    assert left(tmp_path / "cut") == left(tmp_path / "whole")


@pytest.mark.parametrize(
    "change",
    [
        {"federation.participation": 0.25, "rounds": 9},
        {"federation.participation": 0.5, "engine.plan": "cohorts", "engine.cohort_size": 2},
        {"engine.evaluate_every": 0},
        {"engine.evaluate_every": 2, "engine.checkpoint_every": 3, "rounds": 7},
        {"train.dtype": "float64"},
    ],
)
def test_clients_that_wait_and_rounds_that_are_not_measured(tmp_path: Path, change: Mapping[str, object]) -> None:
    experiment = Experiment(strategy="fedmd", **SMALL).changed(**change)
    simulate(experiment, out=tmp_path / "whole")

    resume(cut_off(experiment, tmp_path / "cut", 4))

    assert left(tmp_path / "cut") == left(tmp_path / "whole")


@pytest.mark.parametrize(("every", "kept"), [(0, []), (1, [4, 5]), (2, [4, 5]), (3, [3, 5]), (9, [5])])
def test_checkpoints_come_as_often_as_asked_and_after_the_last_round(
    tmp_path: Path, every: int, kept: list[int]
) -> None:
    experiment = Experiment(strategy="local", **SMALL, engine={"checkpoint_every": every})

    simulate(experiment, out=tmp_path)

    assert sorted(path.name for path in tmp_path.glob("checkpoints/*")) == [f"round-{number:05d}" for number in kept]


def test_the_last_files_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment(strategy="feddf", **SMALL)
    simulate(experiment, out=tmp_path / "whole")
    folder = tmp_path / "cut"

    def full(run: object, clients: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedkd.app.run_folder.RunFolder.finish", lambda self, *found: full(*found))
        with pytest.raises(OSError, match="No space left"):
            simulate(experiment, out=folder)
    (folder / "models").mkdir()
    (folder / "models" / ".student.safetensors.7.tmp").write_bytes(b"half")
    told: list[RoundRecord] = []

    resume(folder, on_round=told.append)

    assert told == []
    assert left(folder) == left(tmp_path / "whole")
    assert_nothing_is_left_over(folder)


@pytest.mark.parametrize("lines", [b"", b'{"round": 3', b'{"round": 3, "seconds": 0}\n{"round": 4}\n'])
def test_rounds_after_the_checkpoint_are_done_again(tmp_path: Path, lines: bytes) -> None:
    experiment = Experiment(strategy="fedmd", **SMALL)
    simulate(experiment, out=tmp_path / "whole")
    folder = cut_off(experiment, tmp_path / "cut", 2)
    before = (folder / "rounds.jsonl").read_bytes()
    (folder / "rounds.jsonl").write_bytes(before + lines)

    resume(folder)

    assert (folder / "rounds.jsonl").read_bytes().startswith(before)
    assert left(folder) == left(tmp_path / "whole")


def test_a_damaged_checkpoint_costs_a_round_and_not_a_bit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    experiment = Experiment(strategy="fedmd", **SMALL)
    simulate(experiment, out=tmp_path / "whole")
    folder = cut_off(experiment, tmp_path / "cut", 3)
    file = folder / "checkpoints" / "round-00003" / "server.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    told: list[int] = []
    caplog.set_level(logging.WARNING)

    resume(folder, on_round=lambda record: told.append(record.round))

    assert "round-00003 (server.safetensors: " in caplog.text
    assert told == [3, 4, 5]
    assert left(folder) == left(tmp_path / "whole")
    assert_nothing_is_left_over(folder)


# --- what is refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return cut_off(Experiment(strategy="fedmd", **{**SMALL, "rounds": 2}), tmp_path / "run", 1)


def test_a_complete_run_or_no_run_is_refused(tmp_path: Path, folder: Path) -> None:
    for nothing in (tmp_path, tmp_path / "missing", folder / "manifest.json"):
        with pytest.raises(UserError, match=r"expected the folder of a run, found no experiment.toml in it"):
            resume(nothing)
    resume(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"run: expected a run that was cut off, found a complete one"):
        resume(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("missing", [None, "manifest.json"])
@pytest.mark.parametrize("log", [False, True])
def test_a_run_of_a_deployment_is_gone_on_with_by_the_command_that_began_it(
    folder: Path, log: bool, missing: str | None
) -> None:
    own = config.load(folder / "experiment.toml").changed(**{"federation.partition": "own"})
    (folder / "experiment.toml").write_text(own.to_toml(), encoding="utf-8")
    if log:  # the operator's command writes it, the server does not
        (folder / "flower.log").touch()
    if missing:
        (folder / missing).unlink()
    command = "go on with: fedkd deploy run EXPERIMENT --superlink HOST:PORT --root-certificates ca.crt --server-out"

    with pytest.raises(UserError) as refused:
        resume(folder)

    assert f"{command} {'FOLDER, the same as before.' if log else folder}" in str(refused.value)
    assert ("found the operator's folder of a deployment" in str(refused.value)) == log


def test_a_run_without_checkpoint_is_refused(tmp_path: Path) -> None:
    experiment = Experiment(strategy="fedmd", **SMALL, engine={"checkpoint_every": 0})
    folder = cut_off(experiment, tmp_path / "run", 2)

    assert not (folder / "checkpoints").exists()
    with pytest.raises(
        UserError, match=r"expected a checkpoint to go on from, found none; start again with: fedkd run"
    ):
        resume(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("code", "f" * 64),
        ("data", "f" * 64),
        ("public_set", "f" * 64),
        ("cpu_capability", "AVX9"),
        ("versions", {"torch": "1.0", "numpy": None}),
    ],
)
def test_what_decides_the_bits_must_be_as_it_was(folder: Path, key: str, value: object) -> None:
    path = folder / "manifest.json"
    values = {**json.loads(path.read_text(encoding="utf-8")), key: value}
    path.write_text(json.dumps(values), encoding="utf-8")

    with pytest.raises(UserError, match=rf"manifest.json: {key}[.a-z]*: expected what the run began with, .*found"):
        resume(folder)

    path.write_text(json.dumps({**values, "public_set": 0, key: value}), encoding="utf-8")
    named = min(key, "public_set", key=[k.split(".")[0] for k in module.DECISIVE].index)
    with pytest.raises(UserError, match=rf"manifest.json: {named}"):  # the first that differs
        resume(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "{}"])
def test_a_damaged_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="utf-8")

    with pytest.raises(UserError, match=r"manifest.json: .*start the run again"):
        resume(folder)


@pytest.mark.parametrize("change", ["rounds = 3", "seed = 7", "lr = 0.5", 'plan = "cohorts"', "evaluate_every = 0"])
def test_an_experiment_that_was_edited_is_refused(folder: Path, change: str) -> None:
    path, key = folder / "experiment.toml", change.partition(" = ")[0]
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = [change if line.startswith(f"{key} = ") else line for line in lines]
    assert changed != lines
    path.write_text("\n".join(changed), encoding="utf-8")

    with pytest.raises(UserError, match=r"manifest.json: experiment: expected what the run began with"):
        resume(folder)


def test_where_it_runs_may_change(folder: Path) -> None:
    path = folder / "experiment.toml"
    text = path.read_text(encoding="utf-8").replace("timeout = 3600.0", "timeout = 60.0")
    path.write_text(text.replace("checkpoint_every = 1", "checkpoint_every = 7"), encoding="utf-8")

    assert read_cut_off(folder, workers=2).experiment.engine.workers == 2
    with pytest.raises(UserError, match=r"engine\.workers"):
        read_cut_off(folder, workers=-1)
    assert resume(folder).summary["rounds"] == 2


def test_a_run_on_flower_is_refused(folder: Path) -> None:
    path = folder / "experiment.toml"
    path.write_text(path.read_text(encoding="utf-8").replace('name = "local"', 'name = "flower"'), encoding="utf-8")

    with pytest.raises(UserError, match=r"run: expected a run on our own engine, found one on Flower's"):
        resume(folder)


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff\n", b'{"round": 1}\n', b"[1]\n"])
def test_records_that_do_not_lead_to_the_checkpoint_are_refused(folder: Path, content: bytes) -> None:
    (folder / "rounds.jsonl").write_bytes(content)

    with pytest.raises(UserError, match=r"rounds.jsonl: expected .*start the run again"):
        resume(folder)


def test_a_run_that_is_still_running_is_left_alone(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with locked(folder), pytest.raises(UserError, match=r"run: expected a run that nobody else works on"):
        resume(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    def again(record: RoundRecord) -> None:
        resume(folder)

    with pytest.raises(UserError, match="nobody else works on"):
        resume(folder, on_round=again)
    assert read_cut_off(folder).records[-1].round == 2


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment(strategy="fedmd", **SMALL)
    simulate(experiment, out=tmp_path / "whole")
    folder, real = tmp_path / "cut", Path.rename

    def full(self: Path, target: Path) -> Path:
        if target.name == "round-00003":
            raise OSError(28, "No space left on device")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(RunError, match="No space left on device"):
            simulate(experiment, out=folder)
    assert len(read_lines(folder / "rounds.jsonl")) == 3

    resume(folder)

    assert left(folder) == left(tmp_path / "whole")


# --- sudden death

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
