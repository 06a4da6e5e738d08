"""The one call that users make: what comes back is what was trained, and nothing else has changed."""

import gc
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedkd
from fedkd.app.history import RoundRecord
from fedkd.app.state import MemoryStates, State
from fedkd.config import Experiment
from fedkd.data.federation import Federation, build
from fedkd.engine.local import LocalGrid
from fedkd.engine.simulate import simulate
from fedkd.errors import UserError

SMALL: Mapping[str, Any] = {
    "rounds": 2,
    "data": {"public": 60, "validation": 1000, "test": 100},
    "federation": {
        "clients": 3,
        "architectures": ("mlp", "mlp-deep"),
        "views": ("image", "image@4"),
        "feature_width": 8,
    },
    "train": {"local_epochs": 1},
    "strategies": {"fedmd": {"transfer_epochs": 1}, "feddf": {"distil_epochs": 1}},
}


def experiment_of(strategy: str, plan: str = "one-by-one") -> Experiment:
    return Experiment(strategy=strategy, **SMALL, engine={"plan": plan})


def logits(module: nn.Module, federation: Federation, view: str) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = module(federation.test(view).inputs)
    return outputs


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    return (outputs.argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
@pytest.mark.parametrize("strategy", ["fedmd", "feddf", "fml", "local"])
def test_the_models_that_come_back_are_the_trained_ones(strategy: str, plan: str) -> None:
    result = simulate(experiment_of(strategy, plan))

    federation = build(experiment_of(strategy))
    labels = federation.test("image").labels
    outputs = {
        row["client"]: logits(result.client_models[row["client"]]["student"], federation, row["view"])
        for row in result.clients
    }
    assert len(outputs) == 3
    for row in result.clients:
        assert accuracy(outputs[row["client"]], labels) == row["global"]["accuracy"]
        entropy = torch.nn.functional.cross_entropy(outputs[row["client"]].double(), labels).item()
        assert row["global"]["nll"] == pytest.approx(entropy, rel=1e-6)
    means = [accuracy(rows, labels) for rows in outputs.values()]
    found = result.metrics["clients_global"]
    assert found is not None
    assert found["accuracy"] == pytest.approx(sum(means) / 3)
    assert found["accuracy_worst10"] == pytest.approx(min(means))
    ensemble = result.metrics["ensemble_global"]
    if strategy == "fedmd":
        assert ensemble is not None
        assert ensemble["accuracy"] == accuracy(torch.stack(list(outputs.values())).double().mean(0), labels)
    if strategy in {"local", "fml"}:
        assert ensemble is None


@pytest.mark.parametrize("strategy", ["feddf", "fml"])
def test_the_servers_models_come_back(strategy: str) -> None:
    result = simulate(experiment_of(strategy))

    federation = build(experiment_of(strategy))
    assert len(result.server_models) == 2
    scores = [
        accuracy(logits(module, federation, name.split("+")[-1]), federation.test("image").labels)
        for name, module in result.server_models.items()
    ]
    found = result.metrics["server_global"]
    assert found is not None
    assert found["accuracy"] == pytest.approx(sum(scores) / len(scores))


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_the_same_experiment_gives_the_same_bits_and_another_others(plan: str) -> None:
    experiment = experiment_of("fedmd", plan)
    torch.manual_seed(1)
    first = simulate(experiment)
    torch.manual_seed(2)
    torch.rand(7)
    second = simulate(experiment.changed(name="other"))

    assert [row["digest"] for row in first.rounds] == [row["digest"] for row in second.rounds]
    assert first.clients == second.clients
    for change in ({"seed": 1}, {"train.lr": 0.002}, {"federation.alpha": 0.6}, {"strategies.fedmd.digest_epochs": 2}):
        assert simulate(experiment.changed(**change)).digest != first.digest


def test_a_client_that_never_took_part_has_no_trained_model() -> None:
    experiment = experiment_of("local").changed(**{"rounds": 1, "federation.participation": 0.3})

    result = simulate(experiment)

    assert list(result.client_models) == list(result.rounds[0]["participants"])
    assert len(result.client_models) == 1


@pytest.mark.parametrize("strategy", ["local", "fedmd"])
def test_a_clients_old_state_is_free_as_soon_as_the_new_one_counts(
    monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    put, kept, most = MemoryStates.put, WeakSet[Tensor](), []

    def counted(states: MemoryStates[State], key: str, version: int, state: State) -> None:
        put(states, key, version, state)
        kept.add(next(iter(state.values())))
        gc.collect()
        most.append(len(kept))

    monkeypatch.setattr(MemoryStates, "put", counted)
    simulate(experiment_of(strategy).changed(**{"rounds": 3, "federation.architectures": ["mlp"]}))

    assert most == [1, 2, 3, 4, 4, 4, 4, 4, 4]  # from round two on, the old state of the client at work


def test_at_the_end_no_state_lies_there_beside_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[LocalGrid] = []

    class Seen(LocalGrid):
        def __init__(self, experiment: Experiment) -> None:
            super().__init__(experiment)
            grids.append(self)

    monkeypatch.setattr("fedkd.engine.local.LocalGrid", Seen)
    assert len(simulate(experiment_of("local")).client_models) == 3

    assert list(grids[0]._states._states.values()) == [{}, {}, {}]


def test_threads_are_restored() -> None:
    torch.set_num_threads(2)
    seen: list[int] = []

    simulate(experiment_of("local"), on_round=lambda record: seen.append(torch.get_num_threads()))

    assert seen == [1, 1]
    assert torch.get_num_threads() == 2


def test_threads_are_restored_after_a_failure() -> None:
    torch.set_num_threads(2)

    def interrupt(record: RoundRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(experiment_of("local"), on_round=interrupt)
    assert torch.get_num_threads() == 2


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = {**os.environ}

    result = simulate(experiment_of("feddf"))

    assert result.folder is None
    assert list(tmp_path.iterdir()) == []
    assert {**os.environ} == home


def test_rounds_are_told_as_they_come() -> None:
    told: list[dict[str, Any]] = []

    result = simulate(experiment_of("fedmd"), on_round=lambda record: told.append(record.to_json()))

    assert told == list(result.rounds)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"strategy": "fedmb"}, "unknown strategy 'fedmb': did you mean 'fedmd'"),
        ({"strategies.fedmd.epochs": 1}, "epochs"),
        ({"data.public": 0}, r"data\.public: strategy 'fedmd' needs a public set"),
        ({"federation.architectures": ("mlq",)}, "mlq"),
        ({"federation.views": ("sound",)}, "sound"),
        (
            {"federation.partition": "own"},
            r"federation\.partition: expected a partition that a simulation can deal.*found 'own'.*or deploy",
        ),
        ({"federation.clients": 900, "federation.min_samples": 100}, "min_samples"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    change: Mapping[str, object], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=problem):
        simulate(experiment_of("fedmd").changed(**change), out=tmp_path / "run")

    assert list(tmp_path.iterdir()) == []


def test_it_is_the_librarys_front_door() -> None:
    assert fedkd.simulate is simulate


def test_a_run_leaves_the_callers_random_numbers_alone() -> None:
    drawn = []
    for runs in (0, 1):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        for _ in range(runs):
            simulate(experiment_of("local"))
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))  # noqa: S311 - no secret
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_bf16_mixed_trains_in_another_precision_and_keeps_the_type_of_the_weights(plan: str) -> None:
    exact = experiment_of("fedmd", plan)
    narrow = exact.changed(**{"train.dtype": "bf16-mixed"})
    first, second, single = simulate(narrow), simulate(narrow), simulate(exact)
    assert first.digest == second.digest != single.digest
    module = next(iter(first.client_models.values()))["student"]
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_bf16_mixed_learns_as_much(plan: str) -> None:
    exact = experiment_of("local", plan).changed(**{"train.lr": 0.01, "train.local_epochs": 10, "rounds": 2})
    single, narrow = (
        simulate(experiment).rounds[-1]["metrics"]["clients_local"]["accuracy"]
        for experiment in (exact, exact.changed(**{"train.dtype": "bf16-mixed"}))
    )
    assert single > 0.7
    assert narrow == pytest.approx(single, abs=0.05)
