"""A simulation divided into files: nodes that see only their own compute what the simulation computes, bit for bit."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd import config, simulate
from fedkd.app import flower
from fedkd.app.run_folder import read_lines
from fedkd.config import Experiment, parse
from fedkd.data.dividing import divide
from fedkd.data.federation import build
from fedkd.errors import UserError
from fedkd.report import write_report
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
        "strategies.fedcqkd.teachers": "image",
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


def test_the_two_runs_could_differ(tmp_path: Path) -> None:
    experiment = experiment_of("fedmd")
    paths = divide(experiment, tmp_path / "files")
    file = tmp_path / "files" / "client-2.npz"
    with np.load(file) as held:
        arrays = dict(held)
    arrays["labels"] = (arrays["labels"] + 1) % 10
    np.savez(file, **arrays)

    run_on_nodes(config.load(tmp_path / "files" / "experiment.toml"), read_configs(paths.values()), tmp_path / "run")

    digests = [row["digest"] for row in read_lines(tmp_path / "run" / "rounds.jsonl")]
    assert digests[0] != simulate(experiment).rounds[0]["digest"]


def two_views(folder: Path) -> Path:
    """Write 600 samples of two views, some of which lack one, with owners."""
    source = np.random.default_rng(0)
    labels = np.arange(600) % 3
    path = folder / "two.npz"
    np.savez(
        path,
        allow_pickle=False,
        labels=labels,
        classes=np.array(["x", "y", "z"]),
        image=source.normal(size=(600, 1, 4, 4)).astype(np.float32) + labels[:, None, None, None],
        wave=source.normal(size=(600, 1, 16)).astype(np.float32) + labels[:, None, None],
        wave_present=source.random(600) < 0.9,
        wave_rate=np.array(16.0),
        groups=np.arange(600) % 11,
    )
    return path


def test_joined_noisy_and_missing_views_and_owners_end_as_in_the_simulation(tmp_path: Path) -> None:
    changes = {
        "data.name": str(two_views(tmp_path)),
        "data.split_by": "group",
        "federation.partition": "natural",
        "federation.min_samples": 1,
        "federation.clients": 6,
        "federation.views": ["image@noise0.5+wave", "wave@8hz@noise0.1", "image"],
        "federation.architectures": ["mlp"],
        "federation.missing": {"wave": 0.3},
        "strategies.view_ensemble.warm_up_epochs": 1,
    }
    experiment = parse({**SMALL, "strategy": "view_ensemble"}, {**changes, "data.public": 50}, "test")
    expected = simulate(experiment)

    paths = divide(experiment, tmp_path / "files")
    deployed = config.load(tmp_path / "files" / "experiment.toml")
    run_on_nodes(deployed, read_configs(paths.values()), tmp_path / "run")

    rounds = read_lines(tmp_path / "run" / "rounds.jsonl")
    assert [{**row, "seconds": 0} for row in rounds] == [{**row, "seconds": 0} for row in expected.rounds]


def test_each_party_gets_its_own_samples_and_no_more(tmp_path: Path) -> None:
    experiment = experiment_of("feddf")
    federation = build(experiment)

    divide(experiment, tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["commons.npz", "experiment.toml", *(f"client-{k}.{end}" for k in range(4) for end in ("npz", "toml"))]
    )
    with np.load(tmp_path / "commons.npz") as shared:
        split, ids = shared["split"], shared["ids"]
        assert ids[split == "public"].tolist() == federation.splits.public.tolist()
        assert ids[split == "test"].tolist() == federation.splits.test.tolist()
        assert set(shared["labels"][split == "public"].tolist()) == {-1}
    for key, held in federation.holdings.items():
        with np.load(tmp_path / f"{key}.npz") as mine:
            assert mine["ids"][mine["is_test"]].tolist() == held.test.tolist()
            assert mine["ids"][~mine["is_test"]].tolist() == held.train.tolist()
            assert mine["labels"].tolist() == federation.dataset.labels[mine["ids"]].tolist()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"federation.partition": "own"}, "federation.partition: expected one that deals samples out, found 'own'"),
        ({"federation.missing": {"image@4": 0.5}, **VIEWS}, "federation.missing: expected names without '@'"),
        (
            {**VIEWS, "federation.missing": {"image": 0.25}, "federation.teacher_view": "image"},
            "expected 'image' from every sample that has 'image@4', which is made from it, found clients that lack it",
        ),
        (
            {"federation.missing": {"image": 0.25}, "federation.views": ["image", "image@4+image"]},
            "federation.missing: expected 'image' from every sample that has 'image@4'",
        ),
        (
            {"federation.min_samples": 0, "federation.clients": 300, "federation.alpha": 0.01},
            "expected training samples for every client, found none; raise min_samples",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(changes: Mapping[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem):
        divide(parse({**SMALL, "strategy": "fedmd"}, changes, "test"), tmp_path / "files")
    assert not (tmp_path / "files").exists()


def test_what_other_clients_make_of_a_missing_view_is_divided(tmp_path: Path) -> None:
    experiment = parse({**SMALL, "strategy": "fedmd"}, {**VIEWS, "federation.missing": {"image": 0.25}}, "test")
    divide(experiment, tmp_path)
    for key, held in build(experiment).holdings.items():
        with np.load(tmp_path / f"{key}.npz") as mine:
            assert mine["ids"][~mine["is_test"]].tolist() == held.train.tolist()


def test_nothing_is_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"expected a new or empty folder, found notes\.txt; choose another one"):
        divide(experiment_of("fedmd"), tmp_path)


def test_a_run_on_nodes_says_who_takes_part_and_can_be_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = divide(experiment_of("feddf"), tmp_path / "files")
    run_on_nodes(config.load(tmp_path / "files" / "experiment.toml"), read_configs(paths.values()), tmp_path / "run")

    sizes = {key: len(held.train) for key, held in build(experiment_of("feddf")).holdings.items()}
    said = capsys.readouterr().err
    assert f"takes part: client-1  cnn, image@4, {sizes['client-1']} samples" in said
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "client-3" in page


def test_a_clients_samples_are_for_nobody_else_to_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        divide(experiment_of("fedmd"), tmp_path / "files")
    finally:
        os.umask(before)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "files").glob("client-*.npz")}
    assert set(modes.values()) == {0o600}
