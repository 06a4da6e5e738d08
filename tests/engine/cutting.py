"""Runs that are cut off, and what they leave."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedkd.app.history import RoundRecord
from fedkd.app.run_folder import read_lines
from fedkd.config import Experiment
from fedkd.engine.simulate import simulate

SMALL: Mapping[str, Any] = {
    "rounds": 5,
    "data": {"public": 40, "public_per_round": 30, "validation": 1200, "test": 40},
    "federation": {"clients": 4, "architectures": ("mlp", "linear"), "feature_width": 8, "min_samples": 5},
    "train": {"local_epochs": 1},
    "strategies": {"feddf": {"distil_epochs": 1}, "fedmd": {"transfer_epochs": 1, "digest_epochs": 1}},
}


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
