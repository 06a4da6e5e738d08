"""A simulation divided into files: nodes that see only their own compute what the simulation computes, bit for bit."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedkd import config, simulate
from fedkd.app import flower
from fedkd.app.run_folder import read_lines
from fedkd.config import Experiment, parse
from fedkd.data.dividing import divide
from tests.app.nodes import read_configs, run_on_nodes

SMALL: Mapping[str, Any] = {
    "rounds": 2,
    "data": {"public": 60, "public_per_round": 40, "validation": 10, "test": 50},
    "federation": {"clients": 4, "architectures": ("mlp", "cnn"), "feature_width": 8, "alpha": 3.0},
    "train": {"local_epochs": 1},
}
VIEWS = {"federation.views": ["image", "image@4"]}
CROSS: Mapping[str, Any] = {
    "fedcqkd": {
        "federation.views": ["image", "image", "image@4", "image@4"],
        "federation.participation": 0.75,
        "strategies.fedcqkd.teacher_view": "image",
        "strategies.fedcqkd.distil_epochs": 2,
    },
    "cqkd": {"federation.views": ["image@4"], "federation.teacher_view": "image", "strategies.cqkd.teacher_epochs": 1},
    "view_ensemble": {**VIEWS, "strategies.view_ensemble.warm_up_epochs": 1},
    "feddf": {**VIEWS, "strategies.feddf.distil_epochs": 2},
    "fedmd": {"data.public_labels": True, "strategies.fedmd.transfer_epochs": 1, "strategies.fedmd.digest_epochs": 2},
}


def experiment_of(strategy: str) -> Experiment:
    return parse({**SMALL, "strategy": strategy}, CROSS[strategy], "test")


@pytest.fixture(autouse=True)
def _fresh_processes() -> Iterator[None]:
    yield
    flower._client_side.cache_clear()


@pytest.mark.parametrize("strategy", CROSS)
def test_nodes_with_their_own_files_end_as_the_simulation_does(strategy: str, tmp_path: Path) -> None:
    experiment = experiment_of(strategy)
    expected = simulate(experiment)

    paths = divide(experiment, tmp_path / "files")
    deployed = config.load(tmp_path / "files" / "experiment.toml")
    run_on_nodes(deployed, read_configs(paths.values()), tmp_path / "run")

    rounds = read_lines(tmp_path / "run" / "rounds.jsonl")
    assert [{**row, "seconds": 0} for row in rounds] == [{**row, "seconds": 0} for row in expected.rounds]
    assert read_lines(tmp_path / "run" / "clients.jsonl") == list(expected.clients)
