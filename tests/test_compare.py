import csv
import json
from statistics import mean, stdev

import pytest

from fedkd.compare import Comparison, compare, flatten
from fedkd.config import Experiment
from fedkd.errors import RunError, UserError
from fedkd.gains import write_csv

TINY = Experiment().changed(**{"rounds": 1, "train.local_epochs": 1, "federation.architectures": ["mlp"]})


def test_rows_hold_mean_and_deviation_of_the_runs_and_the_files_say_the_same(tmp_path):
    comparison = compare(TINY, ["local", "fedavg"], [0, 1, 2], tmp_path, lambda record: None)
    assert [(run["strategy"], run["seed"]) for run in comparison.runs] == [
        (name, seed) for name in ("local", "fedavg") for seed in (0, 1, 2)
    ]
    accuracies = [run["server_global.accuracy"] for run in comparison.runs if run["strategy"] == "fedavg"]
    row = comparison.rows[1]
    assert row["server_global.accuracy.mean"] == pytest.approx(mean(accuracies), rel=1e-12)
    assert row["server_global.accuracy.sd"] == pytest.approx(stdev(accuracies), rel=1e-12)
    assert "server_global.accuracy.mean" not in comparison.rows[0]
    with (tmp_path / "comparison.csv").open() as file:
        written = list(csv.DictReader(file))
    assert float(written[1]["server_global.accuracy.mean"]) == row["server_global.accuracy.mean"]
    assert json.loads((tmp_path / "comparison.json").read_text()) == json.loads(json.dumps(comparison.to_json()))
    assert (tmp_path / "fedavg" / "seed-2" / "summary.json").exists()


def test_a_labelled_public_set_brings_its_own_row(tmp_path):
    labelled = TINY.changed(**{"data.public_labels": True})
    comparison = compare(labelled, ["local"], [0], tmp_path, lambda record: None)
    assert [row["strategy"] for row in comparison.rows] == ["local", "public_only"]
    assert comparison.rows[0]["clients_global.accuracy.sd"] is None


def test_nothing_runs_if_one_of_the_strategies_cannot(tmp_path):
    with pytest.raises(UserError, match="labelled public set"):
        compare(TINY, ["local", "public_only"], [0], tmp_path / "out", lambda record: None)
    assert not (tmp_path / "out").exists()


def test_each_strategy_and_each_seed_is_named_once(tmp_path):
    for strategies, seeds, found in ((["local", "local"], [0], "'local'"), (["local"], [1, 1], "1")):
        with pytest.raises(UserError, match=f"once, found {found} more often"):
            compare(TINY, strategies, seeds, tmp_path, lambda record: None)


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"found thesis\.tex"):
        compare(TINY, ["local"], [0], tmp_path, lambda record: None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_fails_does_not_cost_the_others(tmp_path):
    told = []

    def fail_in_the_second(record):
        told.append(record)
        if len(told) == 2:
            raise RunError("no more")

    with pytest.raises(RunError):
        compare(TINY, ["local", "fedavg"], [0], tmp_path, fail_in_the_second)
    with (tmp_path / "runs.csv").open() as file:
        assert [row["strategy"] for row in csv.DictReader(file)] == ["local"]


def test_a_summary_becomes_flat():
    summary = {"strategy": "x", "metrics": {"clients_global": {"accuracy": 0.5}, "server_global": None}}
    assert flatten(summary) == {"strategy": "x", "clients_global.accuracy": 0.5, "took_no_part": ""}
    assert (
        flatten({**summary, "took_no_part": ["client-1: no data", "2 more"]})["took_no_part"]
        == "client-1: no data; 2 more"
    )


def test_who_took_no_part_is_told_beside_the_numbers(tmp_path, monkeypatch):
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "failing.py").write_text(
        "from fedkd.strategy import MethodCard, Strategy\n"
        "class Failing(Strategy):\n"
        "    card = MethodCard(title='-', authors='-', year=2026)\n"
        "    def client_round(self, client, received):\n"
        "        if client.card.key == 'client-3':\n"
        "            raise LookupError('lost its data')\n"
        "    def server_round(self, server, replies):\n"
        "        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    comparison = compare(TINY, ["local", "failing"], [0, 1], tmp_path / "out", lambda record: None)
    assert not any(key.startswith("took_no_part") for row in comparison.rows for key in row)
    with (tmp_path / "out" / "runs.csv").open() as file:
        told = [row["took_no_part"] for row in csv.DictReader(file)]
    assert told == ["", "", *["client-3: LookupError: lost its data"] * 2]


def test_a_table_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    compare(TINY, ["local"], [0], tmp_path / "out", lambda record: None)
    before = (tmp_path / "out" / "runs.csv").read_bytes()
    monkeypatch.setattr("fedkd.app.run_folder.write_atomically", full)
    with pytest.raises(RunError, match=r"runs.csv: expected what can be written, but: .*; make room"):
        write_csv(tmp_path / "out" / "runs.csv", [{"strategy": "x"}])
    assert (tmp_path / "out" / "runs.csv").read_bytes() == before


def test_with_the_clients_alone_every_run_says_what_each_view_gains(tmp_path):
    asked = TINY.changed(**{"alone": True, "federation.views": ["image", "image@4"]})
    comparison = compare(asked, ["local", "fedmd"], [0, 1], tmp_path, lambda record: None)
    assert [(run["strategy"], run["seed"], run["view"]) for run in comparison.gained] == [
        ("fedmd", seed, view) for seed in (0, 1) for view in ("image", "image@4")
    ]
    written = json.loads((tmp_path / "fedmd" / "seed-1" / "gains.json").read_text())
    assert [row["gain"] for row in written] == [row["gain"] for row in comparison.gained[2:]]
    assert [row["view"] for row in comparison.gains] == ["image", "image@4"]
    with (tmp_path / "gains.csv").open() as file:
        assert [row["view"] for row in csv.DictReader(file)] == ["image", "image@4"]
    assert comparison.to_json()["gains"] == comparison.gains


def test_a_run_whose_clients_cannot_be_trained_alone_is_not_lost(tmp_path, monkeypatch):
    def fails(*arguments):
        raise RunError("alone")

    monkeypatch.setattr("fedkd.compare.measure", fails)
    with pytest.raises(RunError, match="alone"):
        compare(TINY.changed(alone=True), ["fedmd"], [0], tmp_path, lambda record: None)
    with (tmp_path / "runs.csv").open() as file:
        assert [row["strategy"] for row in csv.DictReader(file)] == ["fedmd"]


def test_the_rounds_of_the_clients_alone_are_told_too(tmp_path):
    told = []
    compare(TINY.changed(alone=True), ["fedmd"], [0], tmp_path, told.append)
    assert len(told) == 2 * TINY.rounds


def test_a_measure_that_the_first_run_lacks_is_compared():
    runs = [{"strategy": "s", "seed": 0}, {"strategy": "s", "seed": 1, "x": 2.0}]
    assert Comparison(runs).rows == [{"strategy": "s", "seeds": 2, "x.mean": 2.0, "x.sd": None}]
