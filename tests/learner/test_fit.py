"""The plain loop, against a loop written by hand with torch's own modules and optimisers."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import losses, models
from fedkd.data.samples import Samples
from fedkd.learner import fit as fit_module
from fedkd.learner.cohort import fit_cohort
from fedkd.learner.fit import answer, batches, fit, predict
from fedkd.learner.model import Model, Network, fresh
from fedkd.learner.requests import Batch, Fit, Predict
from fedkd.models import ModelSpec
from fedkd.optimisers import Optimiser

CLASSES = 4
OPTIMISERS = {
    "sgd": (Optimiser("sgd", 0.1), torch.optim.SGD, {}),
    "momentum": (Optimiser("sgd", 0.1, 0.9, 0.01), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "adam": (Optimiser("adam", 0.01), torch.optim.Adam, {}),
    "adamw": (Optimiser("adamw", 0.01, weight_decay=0.1), torch.optim.AdamW, {"weight_decay": 0.1}),
}


def spec(architecture: str = "mlp") -> ModelSpec:
    return ModelSpec(architecture, (1, 6, 6), CLASSES, feature_width=8)


def model(architecture: str = "mlp", seed: int = 0) -> Model:
    return fresh(spec(architecture), seed, torch.empty(0, dtype=torch.float64))


def samples(rows: int = 21, seed: int = 0) -> Samples:
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 1, 6, 6, generator=source, dtype=torch.float64)
    teacher = torch.randn(rows, CLASSES, generator=source, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (rows,), generator=source)
    return Samples(torch.arange(rows) + 100, inputs, {"labels": labels, "teacher": teacher})


def supervised(networks: Mapping[str, Network], batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
    return F.cross_entropy(networks["student"](batch.inputs), batch.labels)


def request(architecture: str = "mlp", **changes: Any) -> Fit:
    plain = Fit({"student": model(architecture)}, samples(), supervised, 2, 8, OPTIMISERS["sgd"][0], seed=5)
    return replace(plain, **changes)


def module_of(given: Model) -> nn.Module:
    module = models.build(given.spec).double()
    module.load_state_dict(dict(given.tensors))
    return module.train()


def assert_equal(found: Model, module: nn.Module) -> None:
    expected = module.state_dict()
    assert set(found.tensors) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-12, atol=1e-13)


# -- which samples in which step


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [
        (6, 3, [3, 3]), (7, 3, [3, 4]), (8, 3, [3, 3, 2]), (5, 8, [5]), (1, 8, [1]), (9, 8, [9]), (2, 1, [1, 1]),
        (4, 1, [1, 1, 1, 1]), (1, 1, [1]),
    ],
)  # fmt: skip
def test_a_last_batch_of_one_joins_the_one_before(rows: int, size: int, expected: list[int]) -> None:
    assert [len(step) for step in batches(rows, 1, size, seed=0)] == expected
    assert [len(step) for step in batches(rows, 3, size, seed=0)] == 3 * expected


def test_every_epoch_visits_every_sample_once_in_an_order_of_its_own() -> None:
    steps = batches(17, epochs=4, batch_size=5, seed=3)
    assert [len(step) for step in steps] == 4 * [5, 5, 5, 2]
    epochs = [tuple(torch.cat(steps[start : start + 4]).tolist()) for start in range(0, 16, 4)]
    assert all(sorted(epoch) == list(range(17)) for epoch in epochs)
    assert len(set(epochs)) == 4
    assert all(step.dtype == torch.int64 for step in steps)


def test_the_order_depends_on_the_seed_only() -> None:
    first = torch.cat(batches(50, 2, 7, seed=1))
    torch.manual_seed(0)
    assert torch.equal(torch.cat(batches(50, 2, 7, seed=1)), first)
    assert torch.equal(torch.cat(batches(50, 2, 50, seed=1)), first)
    assert not torch.equal(torch.cat(batches(50, 2, 7, seed=2)), first)


@pytest.mark.parametrize(("rows", "epochs"), [(0, 3), (5, 0), (0, 0)])
def test_without_samples_or_epochs_there_is_no_step_and_no_change(rows: int, epochs: int) -> None:
    assert batches(rows, epochs, 8, seed=0) == []
    found = fit(request("cnn-bn", samples=samples(rows), epochs=epochs))
    assert_equal(found["student"], module_of(model("cnn-bn")))


# -- against torch's own loop


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("architecture", ["mlp", "cnn", "cnn-bn"])
def test_equals_a_loop_by_hand(architecture: str, optimiser: str) -> None:
    ours, reference, settings = OPTIMISERS[optimiser]
    asked = request(architecture, optimiser=ours)
    module = module_of(model(architecture))
    theirs = reference(module.parameters(), lr=ours.lr, foreach=False, **settings)
    for rows in batches(21, 2, 8, seed=5):
        theirs.zero_grad()
        F.cross_entropy(module(samples().inputs[rows]), samples().labels[rows]).backward()
        theirs.step()
    found = fit(asked)["student"]
    assert_equal(found, module)
    assert (found.tensors["head.weight"] - model(architecture).tensors["head.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["mlp", "cnn", "cnn-bn"])
def test_autocast_equals_a_loop_by_hand(architecture: str) -> None:
    single = Samples(samples().ids, samples().inputs.float(), samples().targets)
    start = fresh(spec(architecture), 0, torch.empty(0))
    found = fit(request(architecture, models={"student": start}, samples=single, autocast=True))["student"]
    module = models.build(spec(architecture))
    module.load_state_dict(dict(start.tensors))
    theirs = torch.optim.SGD(module.parameters(), 0.1, foreach=False)
    for rows in batches(21, 2, 8, seed=5):
        theirs.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(module(single.inputs[rows]), single.labels[rows])
        loss.backward()
        theirs.step()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-5, atol=1e-6)
        assert found.tensors[name].dtype == tensor.dtype
    exact = fit(request(architecture, models={"student": start}, samples=single))["student"]
    assert not torch.allclose(exact.tensors["head.weight"], found.tensors["head.weight"], rtol=1e-5, atol=1e-6)


def test_batch_norm_counts_its_steps_and_moves_its_means() -> None:
    found = fit(request("cnn-bn"))["student"]
    assert found.tensors["features.1.num_batches_tracked"].item() == 6  # 21 samples are batches of 8, 8, 5; twice
    assert not torch.equal(found.tensors["features.1.running_mean"], torch.zeros(16, dtype=torch.float64))


class Centred(nn.Module):
    """A module of a user's own, which puts another tensor in its buffer's place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean(0)
        return inputs - self.mean


def centred(input_shape: tuple[int, ...], feature_width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), Centred(36), nn.Linear(36, feature_width))


def test_a_buffer_that_is_replaced_is_kept_under_either_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_models", sys.modules[__name__])
    asked = request("own_models:centred")
    module = module_of(asked.models["student"])
    theirs = torch.optim.SGD(module.parameters(), 0.1, foreach=False)
    for rows in batches(21, 2, 8, seed=5):
        theirs.zero_grad()
        F.cross_entropy(module(samples().inputs[rows]), samples().labels[rows]).backward()
        theirs.step()

    for trained in (fit(asked)["student"], fit_cohort([asked])[0]["student"]):
        assert_equal(trained, module)
        assert trained.tensors["features.1.mean"].abs().max() > 1e-3


def test_a_student_that_diverges_is_trained_to_the_end_under_either_plan() -> None:
    def objective(networks: Mapping[str, Network], batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        return losses.cross_entropy(networks["student"](batch.inputs), batch.labels)

    diverging = request(objective=objective, optimiser=Optimiser("sgd", 1e300))
    for trained in (fit(diverging)["student"], fit_cohort([diverging])[0]["student"]):
        assert any(tensor.isnan().any() for tensor in trained.tensors.values())
    with pytest.raises(ValueError, match="logits: expected finite numbers, found nan"):  # and losses look again
        losses.cross_entropy(torch.full((1, 2), torch.nan), torch.zeros(1, dtype=torch.int64))


def test_two_models_learn_from_each_other() -> None:
    def mutual(networks: Mapping[str, Network], batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        first, second = networks["student"](batch.inputs), networks["meme"](batch.inputs)
        return (
            F.cross_entropy(first, batch.labels)
            + frozen["weight"] * F.mse_loss(first, second.detach())
            + F.mse_loss(networks["meme"].features(batch.inputs), networks["student"].features(batch.inputs).detach())
            + F.mse_loss(second, batch.targets["teacher"])
        )

    given = {"student": model("mlp", 1), "meme": model("cnn-bn", 2)}
    weight = torch.tensor(0.3, dtype=torch.float64)
    found = fit(request(models=given, objective=mutual, frozen={"weight": weight}))

    first, second = module_of(given["student"]), module_of(given["meme"])
    theirs = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1)
    for rows in batches(21, 2, 8, seed=5):
        x, y, teacher = samples().inputs[rows], samples().labels[rows], samples().targets["teacher"][rows]
        ours, meme = first(x), second(x)
        loss = F.cross_entropy(ours, y) + 0.3 * F.mse_loss(ours, meme.detach()) + F.mse_loss(meme, teacher)
        loss = loss + F.mse_loss(second.features(x), first.features(x).detach())
        theirs.zero_grad()
        loss.backward()
        theirs.step()
    assert list(found) == ["student", "meme"]
    assert_equal(found["student"], first)
    assert_equal(found["meme"], second)
    assert found["meme"].tensors["features.1.num_batches_tracked"].item() == 12  # asked twice in each of six steps


def test_a_part_that_the_objective_does_not_use_stays() -> None:
    def features_only(networks: Mapping[str, Network], batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        return networks["student"].features(batch.inputs).square().mean()

    found = fit(request(objective=features_only))["student"]
    assert torch.equal(found.tensors["head.weight"], model().tensors["head.weight"])
    assert not torch.equal(found.tensors["features.1.weight"], model().tensors["features.1.weight"])


def test_teachers_are_in_evaluation_mode_and_never_trained() -> None:
    teacher = fit(request("cnn-bn"))["student"]  # with running statistics that are not those of a batch
    before = {name: t.clone() for name, t in teacher.tensors.items()}
    asked: list[Tensor] = []

    def distilled(networks: Mapping[str, Network], batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        logits = networks["teacher"](batch.inputs)
        assert not logits.requires_grad
        asked.append(logits)
        return F.mse_loss(networks["student"](batch.inputs), logits)

    found = fit(request(objective=distilled, teachers={"teacher": teacher}))
    assert list(found) == ["student"]
    module = module_of(teacher).eval()
    for rows, logits in zip(batches(21, 2, 8, seed=5), asked, strict=True):
        torch.testing.assert_close(logits, module(samples().inputs[rows]).detach(), rtol=1e-12, atol=1e-13)
    assert all(torch.equal(t, before[name]) for name, t in teacher.tensors.items())


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_what_was_given_stays_and_what_comes_back_is_free(optimiser: str) -> None:
    asked = request("cnn-bn", optimiser=OPTIMISERS[optimiser][0], frozen={"c": torch.ones(2)})
    found = fit(asked)["student"]
    assert_equal(asked.models["student"], module_of(model("cnn-bn")))
    assert torch.equal(asked.samples.inputs, samples().inputs)
    assert all(not t.requires_grad for t in found.tensors.values())
    again = fit(asked)["student"]
    assert all(torch.equal(t, again.tensors[name]) for name, t in found.tensors.items())


# -- predictions


@pytest.mark.parametrize("rows", [0, 1, 5, 13])
@pytest.mark.parametrize("architecture", ["mlp", "cnn-bn"])
def test_predictions_are_the_modules_in_evaluation_mode(
    architecture: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "PREDICT_ROWS", 5)
    trained, inputs = fit(request(architecture))["student"], samples(rows, seed=9).inputs
    module = module_of(trained).eval()
    for found, expected in (
        (predict(Predict(trained, inputs)), module(inputs)),
        (predict(Predict(trained, inputs, "features")), module.features(inputs)),
    ):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-13)
        assert not found.requires_grad


def test_answer_tells_the_two_requests_apart() -> None:
    trained = answer(request())
    assert isinstance(trained, dict)
    logits = answer(Predict(trained["student"], samples().inputs))
    assert torch.equal(logits, predict(Predict(trained["student"], samples().inputs)))
    assert isinstance(trained["student"], Model)
