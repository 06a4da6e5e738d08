"""Cohorts: what one-by-one gives, and for each client the same bits whoever else is there."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import losses
from fedkd.data.samples import Samples
from fedkd.learner import cohort
from fedkd.learner.cohort import answer_together
from fedkd.learner.fit import answer, fit, predict
from fedkd.learner.model import Model, Network, fresh
from fedkd.learner.requests import Batch, Fit, Predict
from fedkd.learner.worth import vectorisable
from fedkd.models import ModelSpec
from fedkd.optimisers import Optimiser

CLASSES = 4
RAGGED = [1, 2, 17, 33, 64]
SIZES = [33, 20, 33, 17, 33, 50, 8]  # ragged too; every partial batch occurs in some cohorts alone, in others not
SGD = Optimiser("sgd", 0.1)
Networks = Mapping[str, Network]
Tensors = Mapping[str, Tensor]

every_architecture = pytest.mark.parametrize("architecture", ["mlp", "cnn", "cnn-bn"])
every_number_of_channels = pytest.mark.parametrize("channels", [1, 3])


def spec(architecture: str, channels: int = 1) -> ModelSpec:
    return ModelSpec(architecture, (channels, 8, 8), CLASSES, feature_width=8)


def supervised(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    return F.cross_entropy(networks["student"](batch.inputs), batch.labels)


def request(client: int, rows: int, models: ModelSpec, dtype: torch.dtype, **changes: Any) -> Fit:
    """Build the fit of one client, all of whose numbers depend on the client only."""
    source = torch.Generator().manual_seed(1000 + client)
    inputs = torch.randn(rows, *models.input_shape, generator=source, dtype=torch.float64).to(dtype)
    teacher = torch.randn(rows, CLASSES, generator=source, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, CLASSES, (rows,), generator=source)
    samples = Samples(torch.arange(rows), inputs, {"labels": labels, "teacher": teacher})
    student = fresh(models, client, torch.empty(0, dtype=dtype))
    return replace(Fit({"student": student}, samples, supervised, 1, 16, SGD, seed=client), **changes)


def doubles(models: ModelSpec, **changes: Any) -> list[Fit]:
    return [request(client, rows, models, torch.float64, **changes) for client, rows in enumerate(RAGGED)]


def assert_as_one_by_one(requests: list[Fit]) -> None:
    assert len({one.key for one in requests}) == 1
    for asked, together in zip(requests, answer_together(requests), strict=True):
        alone = fit(asked)
        assert list(together) == list(alone)
        for name, expected in alone.items():
            assert set(together[name].tensors) == set(expected.tensors)
            for key, tensor in expected.tensors.items():
                torch.testing.assert_close(together[name].tensors[key], tensor, rtol=0, atol=1e-9)
            assert any(
                (tensor - asked.models[name].tensors[key]).abs().max() > 1e-4
                for key, tensor in expected.tensors.items()
            )


def same_bits(first: Mapping[str, Model], second: Mapping[str, Model]) -> bool:
    return all(torch.equal(t, second[name].tensors[key]) for name in first for key, t in first[name].tensors.items())


# -- equal to one by one


@every_architecture
@every_number_of_channels
def test_ragged_shards_train_as_one_by_one(architecture: str, channels: int) -> None:
    assert_as_one_by_one(doubles(spec(architecture, channels)))


@pytest.mark.parametrize(
    "optimiser",
    [
        Optimiser("sgd", 0.1, momentum=0.9, weight_decay=0.01),
        Optimiser("adam", 1e-3),
        Optimiser("adam", 1e-3, weight_decay=0.1),
        Optimiser("adamw", 1e-3, weight_decay=0.1),
    ],
    ids=str,
)
def test_every_optimiser_keeps_its_state_over_ragged_epochs(optimiser: Optimiser) -> None:
    assert_as_one_by_one(doubles(spec("mlp"), optimiser=optimiser, epochs=3))


@every_architecture
def test_soft_labels_frozen_tensors_and_teachers_are_each_clients_own(architecture: str) -> None:
    def taught(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
        features = networks["student"].features(batch.inputs)
        logits = networks["student"].head(features)
        return (
            F.kl_div(logits.log_softmax(-1), batch.targets["teacher"].softmax(-1), reduction="batchmean")
            + frozen["weight"] * F.mse_loss(logits, networks["teacher"](batch.inputs))
            + F.mse_loss(features, frozen["prototypes"][batch.labels])
        )

    requests = [
        replace(
            one,
            frozen={
                "weight": torch.tensor(0.1 * client, dtype=torch.float64),
                "prototypes": torch.full((CLASSES, 8), float(client), dtype=torch.float64),
            },
            teachers={"teacher": fresh(spec("cnn-bn"), 100 + client, torch.empty(0, dtype=torch.float64))},
        )
        for client, one in enumerate(doubles(spec(architecture), objective=taught))
    ]
    assert_as_one_by_one(requests)
    assert not same_bits(*answer_together([requests[0], replace(requests[0], frozen=requests[1].frozen)]))


def test_features_captured_by_layer_train_as_one_by_one() -> None:
    def taught(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
        features, ours = networks["student"].captured(batch.inputs, ["2", "6"])
        _, theirs = networks["teacher"].captured(batch.inputs, ["2", "6"])
        hints = torch.stack([losses.attention(ours[layer], theirs[layer]) for layer in ours]).sum()
        return losses.cross_entropy(networks["student"].head(features), batch.labels) + 10 * hints

    teacher = fresh(spec("cnn-bn"), 100, torch.empty(0, dtype=torch.float64))
    requests = doubles(spec("cnn"), objective=taught, epochs=2, teachers={"teacher": teacher})
    assert_as_one_by_one(requests)
    without = replace(requests[2], objective=supervised)
    assert not same_bits(*answer_together([requests[2]]), *answer_together([without]))


def test_two_models_of_each_client_train_together() -> None:
    def mutual(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
        first, second = networks["student"](batch.inputs), networks["meme"](batch.inputs)
        return (
            F.cross_entropy(first, batch.labels)
            + F.cross_entropy(second, batch.labels)
            + F.mse_loss(first, second.detach())
            + F.mse_loss(second, first.detach())
        )

    meme = partial(fresh, spec("cnn-bn"), like=torch.empty(0, dtype=torch.float64))
    requests = [
        replace(one, models={**one.models, "meme": meme(50 + client)})
        for client, one in enumerate(doubles(spec("mlp"), objective=mutual))
    ]
    assert_as_one_by_one(requests)


@pytest.mark.parametrize("sizes", [[0, 0], [0, 5, 0], [0, 1]])
def test_clients_without_samples_keep_their_models(sizes: list[int]) -> None:
    requests = [request(client, rows, spec("cnn-bn"), torch.float64) for client, rows in enumerate(sizes)]
    for asked, found in zip(requests, answer_together(requests), strict=True):
        assert same_bits(found, asked.models) == (len(asked.samples) == 0)


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_autocast_narrows_a_cohort_too(architecture: str) -> None:
    """Bfloat16 has eight bits: vectorised steps round otherwise than single ones, but no further off than those are."""
    narrow, exact = (
        [request(k, 16, spec(architecture), torch.float32, autocast=cast, batch_size=8) for k in range(5)]
        for cast in (True, False)
    )
    assert len({one.key for one in [*narrow, *exact]}) == 2
    together, alone, right = answer_together(narrow), [fit(one) for one in narrow], [fit(one) for one in exact]
    weights = [[models["student"].tensors["head.weight"] for models in them] for them in (together, alone, right)]
    ours, theirs = (max(float((a - b).abs().max()) for a, b in zip(w, weights[2], strict=True)) for w in weights[:2])
    assert 0 < ours < 3 * theirs


def test_batch_norm_under_autocast_runs_one_by_one() -> None:
    assert vectorisable(spec("cnn-bn"))
    assert not vectorisable(spec("cnn-bn"), autocast=True)
    requests = [request(k, 16, spec("cnn-bn"), torch.float32, autocast=True) for k in range(5)]
    assert all(same_bits(a, fit(b)) for a, b in zip(answer_together(requests), requests, strict=True))


def test_what_was_given_stays() -> None:
    requests = doubles(spec("cnn-bn"), optimiser=Optimiser("sgd", 0.1, momentum=0.9))
    answer_together(requests)
    for asked, untouched in zip(requests, doubles(spec("cnn-bn")), strict=True):
        assert same_bits(asked.models, untouched.models)
        assert torch.equal(asked.samples.inputs, untouched.samples.inputs)


# -- the same bits in every company


@pytest.fixture(scope="module")
def alone_and_together() -> Callable[[str, int], tuple[list[Fit], list[Any]]]:
    """Return the seven clients' requests in float32, and their answers in one cohort of seven; computed once."""
    known: dict[tuple[str, int], tuple[list[Fit], list[Any]]] = {}

    def of(architecture: str, channels: int) -> tuple[list[Fit], list[Any]]:
        if (architecture, channels) not in known:
            models = spec(architecture, channels)
            requests = [request(client, rows, models, torch.float32) for client, rows in enumerate(SIZES)]
            known[architecture, channels] = requests, answer_together(requests)
        return known[architecture, channels]

    return of


Company = Callable[[str, int], tuple[list[Fit], list[Any]]]


@every_architecture
@every_number_of_channels
@pytest.mark.parametrize("members", [[0], [1], [0, 1], [2, 3, 4], [0, 2, 4, 6], [6, 5, 4, 3, 2, 1, 0]], ids=str)
def test_a_clients_bits_do_not_depend_on_the_others(
    architecture: str, channels: int, members: list[int], alone_and_together: Company
) -> None:
    requests, expected = alone_and_together(architecture, channels)
    for member, found in zip(members, answer_together([requests[k] for k in members]), strict=True):
        assert same_bits(found, expected[member])


def pooled(input_shape: tuple[int, ...], feature_width: int) -> nn.Module:
    """A few channels after pooling: of the last elements of a step each client has only these."""
    maps = [nn.Conv2d(input_shape[0], 4, 3), nn.AdaptiveAvgPool2d(1), nn.Softplus(), nn.Conv2d(4, feature_width, 1)]
    return nn.Sequential(*maps, nn.GELU(), nn.Flatten())


def smooth(input_shape: tuple[int, ...], feature_width: int) -> nn.Module:
    """An architecture with functions that torch computes otherwise for the last elements of a tensor."""
    maps = [nn.Conv2d(input_shape[0], 6, 3), nn.GELU(), nn.Conv2d(6, 5, 3), nn.SiLU(), nn.Flatten()]
    return nn.Sequential(*maps, nn.Linear(80, 24), nn.Softplus(), nn.Linear(24, feature_width))


def normed(input_shape: tuple[int, ...], feature_width: int) -> nn.Module:
    """BatchNorm over as few features as torch computes otherwise."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, feature_width))


@pytest.mark.parametrize(
    ("architecture", "batch"), [("smooth", 5), ("pooled", 3), ("pooled", 17), ("normed", 3), ("normed", 5)]
)
def test_nor_do_they_with_functions_whose_last_elements_differ(
    architecture: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "own_models", sys.modules[__name__])
    model = spec(f"own_models:{architecture}")
    requests = [request(k, batch + k % 3, model, torch.float32, batch_size=batch) for k in range(20)]
    expected = answer_together(requests)
    for size in range(1, 20):
        found = answer_together(requests[:size])
        assert [k for k in range(size) if not same_bits(found[k], expected[k])] == []


def test_predictions_are_made_one_by_one() -> None:
    inputs = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    asked = [Predict(one.models["student"], inputs) for one in doubles(spec("cnn-bn"))]
    for one, found in zip(asked, answer_together(asked), strict=True):
        assert torch.equal(found, predict(one))


# -- what cannot be vectorised


def dropped(input_shape: tuple[int, ...], feature_width: int) -> nn.Module:
    """An architecture of a user's own, with dropout."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, feature_width), nn.Dropout(0.5))


@pytest.fixture
def with_dropout(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setitem(sys.modules, "own_models", sys.modules[__name__])
    return spec("own_models:dropped")


def test_dropout_is_told_apart(with_dropout: ModelSpec) -> None:
    assert not vectorisable(with_dropout)
    assert vectorisable(spec("cnn-bn"))


def test_a_model_with_dropout_runs_one_by_one_and_on_its_own_seed(with_dropout: ModelSpec) -> None:
    requests = [request(client, 20, with_dropout, torch.float32) for client in range(3)]
    alone = [answer(one) for one in requests]
    torch.manual_seed(1)
    for members in ([0, 1, 2], [2], [1, 0]):
        for member, found in zip(members, answer_together([requests[k] for k in members]), strict=True):
            assert same_bits(found, alone[member])
    other = answer(replace(requests[0], seed=99))
    assert not same_bits(other, alone[0])


def test_a_fit_with_dropout_leaves_the_global_generator_alone(with_dropout: ModelSpec) -> None:
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    answer(request(0, 20, with_dropout, torch.float32))
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize("place", ["models", "teachers"])
def test_one_model_with_dropout_is_enough(with_dropout: ModelSpec, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "fit_cohort", lambda requests: pytest.fail("was vectorised"))
    extra = {"models": ("student", "other"), "teachers": ("other",)}[place]
    base = request(0, 4, spec("mlp"), torch.float32)
    models = {"student": base.models["student"], "other": fresh(with_dropout, 0, torch.empty(0))}
    changed = replace(base, **{place: {name: models[name] for name in extra}})
    assert len(answer_together([changed, changed])) == 2
