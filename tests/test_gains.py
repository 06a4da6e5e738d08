"""What each view gains: steps made equal, accuracies averaged by view."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from fedkd import simulate
from fedkd.config import Experiment
from fedkd.gains import alone, gains, over_seeds, write_gains


def client(key: str, view: str, accuracy: float, samples: int = 40, missing: int = 0) -> dict[str, Any]:
    return {
        "client": key,
        "view": view,
        "num_samples": samples,
        "missing": {view: missing},
        "global": {"accuracy": accuracy},
    }


def rounds(*steps: dict[str, int]) -> list[dict[str, Any]]:
    return [{"participants": row} for row in steps]


def test_alone_every_client_takes_at_least_as_many_steps() -> None:
    clients = [client("a", "x", 0.5, samples=40), client("b", "x", 0.5, samples=33), client("c", "x", 0.5, samples=0)]
    asked = Experiment(strategy="fedmd", alone=True, train={"batch_size": 32})
    found = alone(asked, rounds({"a": 7, "b": 3, "c": 5}, {"a": 2, "c": 5}), clients)
    assert (found.strategy, found.alone) == ("local", False)
    # a: 9 steps in two rounds, two steps a pass; b: 3 in one round, one a pass since a last single sample joins
    assert found.strategies == {"local": {"epochs": {"a": 3, "b": 3, "c": 0}}}
    assert found.changed(strategy="fedmd", alone=True, strategies={}) == asked


def test_a_view_gains_the_difference_of_the_means_of_its_clients() -> None:
    together = [client("a", "x", 0.5), client("b", "y", 0.9, missing=3), client("c", "x", 0.75)]
    before = [client("c", "x", 0.5), client("b", "y", 1.0), client("a", "x", 0.25)]
    assert gains(together, before) == [
        {"view": "x", "clients": 2, "missing": 0, "alone": 0.375, "together": 0.625, "gain": 0.25},
        {"view": "y", "clients": 1, "missing": 3, "alone": 1.0, "together": 0.9, "gain": pytest.approx(-0.1)},
    ]


def test_who_is_not_measured_twice_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    rows = gains([client("a", "x", 0.5), client("b", "x", 1.0)], [client("b", "x", 0.25), client("c", "x", 0.0)])
    assert [(row["view"], row["clients"], row["gain"]) for row in rows] == [("x", 1, 0.75)]
    assert caplog.messages == ["gains: without a, c, measured in one of the two runs only"]


def test_gains_are_written_for_people_and_programs(tmp_path: Path) -> None:
    rows = gains([client("a", "x", 0.5)], [client("a", "x", 0.25)])
    write_gains(tmp_path, rows)
    assert json.loads((tmp_path / "gains.json").read_text()) == rows
    [row] = csv.DictReader((tmp_path / "gains.csv").read_text().splitlines())
    assert (row["view"], float(row["gain"])) == ("x", 0.25)


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_a_run_and_its_baseline_take_the_steps_that_are_recorded(plan: str) -> None:
    asked = Experiment(
        strategy="fedmd",
        rounds=2,
        data={"test": 60, "public": 50},
        federation={"clients": 4, "architectures": ["linear"], "partition": "iid"},
        strategies={"fedmd": {"transfer_epochs": 2, "digest_epochs": 3}},
        engine={"plan": plan, "evaluate_every": 0},
    )
    together = simulate(asked)
    before = simulate(alone(asked, together.rounds, together.clients))
    for row in together.clients:
        private, public = -(-row["num_samples"] // 32), 2  # steps of one pass over either; nobody has a single rest
        assert row["num_samples"] % 32 > 1
        taken = [record["participants"][row["client"]] for record in together.rounds]
        assert taken == [3 * private, 3 * public + private]
        instead = [record["participants"][row["client"]] for record in before.rounds]
        assert instead[0] == instead[1]
        assert sum(taken) <= sum(instead) <= sum(taken) + 2 * private


def test_gains_over_seeds_have_the_interval_of_students_t() -> None:
    values = [0.01, 0.04, 0.03, 0.02, 0.05]
    runs = [
        {
            **{"strategy": "s", "seed": n, "view": view, "clients": 3, "missing": 10 + n},
            **{"alone": 0.5, "together": 0.5 + sign * v, "gain": sign * v},
        }
        for n, v in enumerate(values)
        for view, sign in (("x", 1), ("y", -1))
    ]
    x, y = over_seeds(runs)
    # mean 0.03, deviation sqrt(0.00025), five values: t with four degrees of freedom is 2.776445 (from its table)
    half = 2.776445 * 0.00025**0.5 / 5**0.5
    assert (x["strategy"], x["view"], x["seeds"]) == ("s", "x", 5)
    assert (x["clients"], x["missing"]) == (3, 12)
    assert [x["alone"], x["together"], x["gain"]] == pytest.approx([0.5, 0.53, 0.03])
    assert [x["low"], x["high"]] == pytest.approx([0.03 - half, 0.03 + half], abs=1e-7)
    assert [y["low"], y["high"]] == pytest.approx([-0.03 - half, -0.03 + half], abs=1e-7)
    [one] = over_seeds(runs[:1])
    assert (one["low"], one["high"]) == (None, None)
