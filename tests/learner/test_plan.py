"""The plan: who is trained together depends on the experiment alone, and large steps are left alone."""

from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import nn

from fedkd.config import Experiment
from fedkd.data.federation import build
from fedkd.learner import cohort, worth
from fedkd.learner import plan as plan_module
from fedkd.learner.plan import chunks_in_a_round, plan, tell_of_unfit_models


def experiment_of(plan: str = "cohorts", **changes: Any) -> Experiment:
    base = {"data.public": 40, "federation.clients": 12, "engine.plan": plan, "federation.min_samples": 0}
    return Experiment().changed(**base, **{name.replace("__", "."): value for name, value in changes.items()})


def sizes(experiment: Experiment) -> list[tuple[str, bool, list[int]]]:
    cohorts = plan(experiment, build(experiment).holdings)
    return [(cohort.architecture, cohort.vectorised, [len(chunk) for chunk in cohort.chunks]) for cohort in cohorts]


def test_one_by_one_everybody_is_alone() -> None:
    assert sizes(experiment_of("one-by-one")) == [("cnn", False, [1] * 12)]


@pytest.mark.parametrize(("size", "expected"), [(32, [12]), (12, [12]), (11, [6, 6]), (5, [4, 4, 4]), (2, [2] * 6)])
def test_chunks_are_as_equal_as_can_be(size: int, expected: list[int]) -> None:
    assert sizes(experiment_of(engine__cohort_size=size)) == [("cnn", True, expected)]


def skewed(plan: str, size: int = 3) -> Experiment:
    shards = {"federation__partition": "dirichlet", "federation__alpha": 0.5}
    return experiment_of(plan, engine__cohort_size=size, **shards)


def samples_in(experiment: Experiment) -> dict[str, int]:
    return {key: len(holding.train) for key, holding in build(experiment).holdings.items()}


def test_clients_with_about_as_many_samples_are_together() -> None:
    samples = samples_in(skewed("cohorts"))
    (one,) = plan(skewed("cohorts"), samples)

    assert sorted(key for chunk in one.chunks for key in chunk) == sorted(samples)
    falling = sorted(samples.values(), reverse=True)
    assert falling[0] > falling[-1]
    assert [samples[key] for chunk in one.chunks for key in chunk] == falling


@pytest.mark.parametrize(("most", "windows"), [(6, [6, 6]), (4, [3, 3, 3, 3]), (1, [3, 3, 3, 3]), (9, [9, 3])])
def test_only_clients_whose_keys_are_near_are_dealt_to_other_chunks(
    most: int, windows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "DEALT_TOGETHER", most)
    samples = samples_in(skewed("cohorts"))
    (one,) = plan(skewed("cohorts"), samples)

    dealt, keys = [key for chunk in one.chunks for key in chunk], sorted(samples)
    for start, size in zip(accumulate(windows, initial=0), windows, strict=False):
        window = slice(start, start + size)
        assert dealt[window] == sorted(keys[window], key=lambda key: -samples[key])


def test_one_by_one_clients_come_in_the_order_of_their_keys() -> None:
    samples = samples_in(skewed("one-by-one"))
    (one,) = plan(skewed("one-by-one"), samples)

    assert one.chunks == tuple((key,) for key in sorted(samples))


@pytest.mark.parametrize(
    ("changes", "chunks"),
    [
        ({"plan": "one-by-one"}, 12),
        ({"plan": "one-by-one", "federation__participation": 0.25}, 3),
        ({}, 1),
        ({"engine__cohort_size": 5}, 3),
        ({"engine__cohort_size": 5, "federation__participation": 0.5}, 2),
        ({"federation__architectures": ["mlp", "resnet-gn"], "train__batch_size": 32}, 1 + 6),
        ({"plan": "one-by-one", "federation__participation": 0.1}, 1),  # 1.2 clients
        ({"federation__architectures": ["mlp", "cnn", "cnn-bn"], "federation__participation": 0.125}, 2),
    ],
)
def test_who_can_be_busy_is_known_beforehand(changes: dict[str, Any], chunks: int) -> None:
    experiment = experiment_of(**changes)
    assert chunks_in_a_round(experiment, build(experiment).holdings) == chunks


def test_a_large_step_is_not_vectorised() -> None:
    mixed = experiment_of(federation__architectures=["mlp", "resnet-gn"], train__batch_size=32)
    assert sizes(mixed) == [("mlp", True, [6]), ("resnet-gn", False, [1] * 6)]
    assert sizes(mixed.changed(**{"train.batch_size": 4}))[1] == ("resnet-gn", True, [6])


def test_nothing_but_the_experiment_decides() -> None:
    experiment = experiment_of()
    for workers in (0, 1, 7):
        other = experiment.changed(**{"engine.workers": workers})
        keys = reversed(list(build(other).holdings))
        assert plan(other, keys) == plan(experiment, build(experiment).holdings)


def test_what_is_not_worth_it_runs_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worth.LARGEST_STEP, "cpu", 0)
    monkeypatch.setattr(cohort, "fit_cohort", lambda requests: pytest.fail("was vectorised"))
    from fedkd import simulate

    result = simulate(experiment_of(strategy="local", rounds=1, train__local_epochs=1))
    assert torch.isfinite(torch.tensor(result.metrics["clients_global"]["accuracy"]))  # type: ignore[index]


def test_models_that_cannot_be_trained_together_are_named(caplog: pytest.LogCaptureFixture) -> None:
    experiment = experiment_of(federation__architectures=["mlp", f"{__name__}:dropping"])
    for told in ("cohorts", "one-by-one"):
        tell_of_unfit_models(experiment.changed(**{"engine.plan": told}))
    assert caplog.messages == [
        f"cohorts: clients with {__name__}:dropping are trained one by one, since it has Dropout"
    ]


def dropping(input_shape: tuple[int, ...], feature_width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(feature_width), nn.Dropout())
