"""Going on with a run that was cut off: the same end, bit for bit, wherever it was cut."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

import fedkd
from fedkd.app.history import RoundRecord
from fedkd.config import Experiment
from fedkd.engine.resume import resume
from fedkd.engine.simulate import simulate
from tests.engine.cutting import SMALL, Cut, assert_nothing_is_left_over, cut_after, cut_off, left

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
        client.state |= {"turned": torch.rand(301, 257).t(), "free": torch.rand(3, requires_grad=True)}

    def client_round(self, client, received):
        client.state["brain"] *= 1.5
        client.state["count"] += 1
        client.state["sum"] = client.state["turned"].sum()  # whose bits depend on how it lies there
        client.state["total"] = torch.zeros(())
        for tensor in list(client.state.values()):  # and those of this on the order
            client.state["total"] = client.state["total"] + tensor.detach().float().sum() / 3
        client.state["free"] = client.state["free"] * (1.5 if client.state["free"].requires_grad else 2.5)
        client.fit(client.private, losses.cross_entropy)
        return client.predict(client.next_public_subset)

    def server_setup(self, server):
        server.state = {"z": torch.rand(3), "a": torch.zeros((), dtype=torch.bfloat16), "t": torch.rand(301, 257).t()}

    def server_round(self, server, replies):
        server.state["a"] += 1
        server.state[f"round-{server.round}"] = torch.rand(2)
        return server.soft_labels(sum(tensor.sum() for tensor in server.state.values()) + replies[0].knowledge.logits)
'''


@pytest.fixture
def own_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "keeper.py").write_text(KEEPER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


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
