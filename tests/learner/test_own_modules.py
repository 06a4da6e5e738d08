"""What models and objectives of users' own may do: under either plan they train as in a loop by hand."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from fedkd.data.samples import Samples
from fedkd.learner import executor
from fedkd.learner.cohort import fit_cohort
from fedkd.learner.executor import Executor, Program, lockstep, one_by_one
from fedkd.learner.fit import batches, fit, predict
from fedkd.learner.model import Model, Network, _bench, fresh
from fedkd.learner.requests import Ask, Batch, Fit, Objective, Predict
from fedkd.models import ModelSpec, build
from fedkd.optimisers import Optimiser

CLIENTS, CLASSES, STEPS, CHANNELS = 5, 3, 4, 2
SHAPE = (STEPS, CHANNELS)
Networks = Mapping[str, Any]
Tensors = Mapping[str, Tensor]
Architecture = Callable[[tuple[int, ...], int], nn.Module]


def supervised(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    return F.cross_entropy(networks["student"](batch.inputs), batch.labels)


def request(client: int, architecture: Architecture, objective: Objective = supervised) -> Fit:
    spec = ModelSpec(f"{__name__}:{architecture.__name__}", SHAPE, CLASSES, feature_width=6)
    source = torch.Generator().manual_seed(client)
    rows = [9, 13, 17, 12, 4][client]
    inputs = torch.randn(rows, *SHAPE, generator=source, dtype=torch.float64)
    samples = Samples(torch.arange(rows), inputs, {"labels": torch.randint(0, CLASSES, (rows,), generator=source)})
    student = fresh(spec, client, torch.empty(0, dtype=torch.float64))
    return Fit({"student": student}, samples, objective, 2, 4, Optimiser("sgd", 0.1), seed=client)


def by_hand(asked: Fit) -> dict[str, Tensor]:
    """Return parameters and buffers after a plain loop of torch's own."""
    model, samples = asked.models["student"], asked.samples
    module = build(model.spec).double()
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor.copy_(model.tensors[name])
    ours = asked.optimiser
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[ours.name]
    optimiser = kind(module.parameters(), lr=ours.lr, weight_decay=ours.weight_decay)
    for rows in batches(len(samples), asked.epochs, asked.batch_size, asked.seed):
        optimiser.zero_grad()
        networks: Any = {"student": module}
        batch = Batch(samples.inputs[rows], {"labels": samples.labels[rows]})
        asked.objective(networks, batch, {}).backward()
        optimiser.step()
    return {name: tensor.detach() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def answered(execute: Executor[Any], requests: list[Fit]) -> list[Any]:
    def program(asked: Fit) -> Program[Model]:
        def run(ask: Ask) -> Model:
            student: Model = ask(asked)["student"]
            return student

        return run

    return execute([program(asked) for asked in requests])


def assert_as_by_hand(execute: Executor[Any], requests: list[Fit]) -> None:
    for asked, model in zip(requests, answered(execute, requests), strict=True):
        assert isinstance(model, Model), model
        expected = by_hand(asked)
        assert expected.keys() == model.tensors.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(model.tensors[name], tensor, rtol=0, atol=1e-12)


both = pytest.mark.parametrize("execute", [one_by_one, lockstep], ids=["one_by_one", "lockstep"])


# -- modules


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(STEPS * CHANNELS, 8), nn.Linear(8, 8)
        self.third, self.last = nn.Linear(8, 8), nn.Linear(8, width)
        self.third.weight, self.again = self.second.weight, self.second

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.second(self.first(inputs.flatten(1)).tanh()).tanh()
        features: Tensor = self.last(self.again(self.third(hidden).tanh()))
        return features


class Words(nn.Module):
    """Takes inputs for the numbers of words."""

    def __init__(self, width: int, **settings: Any) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(7, 6, **settings), nn.Linear(6, width)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.last(self.table((3 * inputs.abs()).long().flatten(1) % 7).mean(1))
        return features


class Recurrent(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, layer: Callable[..., nn.Module], width: int) -> None:
        super().__init__()
        self.layer = layer(CHANNELS, width, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        states: Tensor = self.layer(inputs)[0]
        return states[:, -1]


class Images(nn.Module):
    """GroupNorm and average pooling, called with arguments by name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 2 * 1, width)
        self.scale, self.shift = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    def forward(self, inputs: Tensor) -> Tensor:
        maps = F.group_norm(input=self.first(inputs[:, None]), num_groups=2, weight=self.scale, bias=self.shift)
        features: Tensor = self.last(F.avg_pool2d(input=maps, kernel_size=2).flatten(1))
        return features


class Hooked(nn.Module):
    """Takes a tenth of the gradient, if there is one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(STEPS * CHANNELS, width)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.layer(inputs.flatten(1))
        if features.requires_grad:
            features.register_hook(lambda gradient: 0.1 * gradient)
        return features


class Shrinking(nn.Module):
    """Changes its own weights in place, of the client that trains and of no other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(STEPS * CHANNELS, width)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            self.layer.weight.mul_(0.9)
        features: Tensor = self.layer(inputs.flatten(1))
        return features


class PartlyFrozen(nn.Module):
    """Its author trains the last layer only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(STEPS * CHANNELS, 8), nn.Linear(8, width)
        self.first.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.last(self.first(inputs.flatten(1)).tanh())
        return features


class Closing(nn.Module):
    """Holds on to itself in a function."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(STEPS * CHANNELS, width)
        self.activated = lambda inputs: self.layer(inputs).tanh()

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.activated(inputs.flatten(1))
        return features


class Cooling(nn.Module):
    """Keeps a temperature, which falls, and what it has seen."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.temperature, self.seen = nn.Linear(STEPS * CHANNELS, width), 2.0, list[Tensor]()

    def forward(self, inputs: Tensor) -> Tensor:
        self.temperature *= 0.9
        features: Tensor = self.layer(inputs.flatten(1)) / self.temperature
        self.seen.append(features)
        return features


class Looking(nn.Module):
    """Calls what ``torch.nn.functional.embedding`` calls."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.last = nn.Parameter(torch.ones(7, 6)), nn.Linear(6, width)

    def forward(self, inputs: Tensor) -> Tensor:
        words = (3 * inputs.abs()).long().flatten(1) % 7
        features: Tensor = self.last(torch.embedding(self.table, words, 0).mean(1))
        return features


def tied(shape: tuple[int, ...], width: int) -> nn.Module:
    return Tied(width)


def padded(shape: tuple[int, ...], width: int) -> nn.Module:
    return Words(width, padding_idx=-7)


def bounded(shape: tuple[int, ...], width: int) -> nn.Module:
    return Words(width, max_norm=1.0)


def by_frequency(shape: tuple[int, ...], width: int) -> nn.Module:
    return Words(width, scale_grad_by_freq=True)


def lstm(shape: tuple[int, ...], width: int) -> nn.Module:
    return Recurrent(nn.LSTM, width)


def gru(shape: tuple[int, ...], width: int) -> nn.Module:
    return Recurrent(nn.GRU, width)


def rnn(shape: tuple[int, ...], width: int) -> nn.Module:
    return Recurrent(nn.RNN, width)


def images(shape: tuple[int, ...], width: int) -> nn.Module:
    return Images(width)


def hooked(shape: tuple[int, ...], width: int) -> nn.Module:
    return Hooked(width)


def shrinking(shape: tuple[int, ...], width: int) -> nn.Module:
    return Shrinking(width)


def partly_frozen(shape: tuple[int, ...], width: int) -> nn.Module:
    return PartlyFrozen(width)


def closing(shape: tuple[int, ...], width: int) -> nn.Module:
    return Closing(width)


def cooling(shape: tuple[int, ...], width: int) -> nn.Module:
    return Cooling(width)


def looking(shape: tuple[int, ...], width: int) -> nn.Module:
    return Looking(width)


def plain(shape: tuple[int, ...], width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(STEPS * CHANNELS, width))


MODULES = [tied, padded, bounded, by_frequency, lstm, gru, rnn, images, hooked, shrinking, partly_frozen, closing]
MODULES += [cooling, looking]


@both
@pytest.mark.parametrize("architecture", MODULES)
def test_a_module_trains_as_by_hand(execute: Executor[Any], architecture: Architecture) -> None:
    assert_as_by_hand(execute, [request(client, architecture) for client in range(CLIENTS)])


@pytest.mark.parametrize("architecture", [tied, padded, lstm, gru, rnn, images, shrinking, closing, looking])
def test_what_can_be_vectorised_is(architecture: Architecture) -> None:
    requests = [request(client, architecture) for client in range(CLIENTS)]
    for asked, models in zip(requests, fit_cohort(requests), strict=True):
        for name, tensor in by_hand(asked).items():
            torch.testing.assert_close(models["student"].tensors[name], tensor, rtol=0, atol=1e-12)


def test_what_a_module_keeps_is_over_with_its_client() -> None:
    asked = request(0, cooling)
    prediction = Predict(asked.models["student"], asked.samples.inputs)
    first, trained = predict(prediction), fit(asked)["student"]
    again, trained_again = predict(prediction), fit(asked)["student"]
    assert torch.equal(first, again)
    assert all(torch.equal(tensor, trained_again.tensors[name]) for name, tensor in trained.tensors.items())
    part = _bench(asked.models["student"].spec, 0, training=True).module.features
    assert isinstance(part, Cooling)
    assert len(part.seen) == 1  # when it was built: of the last client's data nothing is kept


# -- objectives


def tempered(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    """Vectorise over as many temperatures as there are clients."""
    inputs, labels = batch.inputs, batch.labels
    scales = torch.linspace(0.5, 2, CLIENTS, dtype=inputs.dtype)
    return vmap(lambda scale: F.cross_entropy(networks["student"](inputs * scale), labels))(scales).mean()


def each_sample(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    def loss(sample: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(networks["student"](sample[None]), label[None])

    return vmap(loss)(batch.inputs, batch.labels).mean()


def reversed_by_a_hook(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    features = networks["student"].features(batch.inputs)
    features.register_hook(lambda gradient: -0.5 * gradient)
    return F.cross_entropy(networks["student"].head(features), batch.labels)


def of_ties(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    """Of equal numbers, which share the gradient of the largest and of the smallest."""
    logits = networks["student"](batch.inputs)
    rounded = logits + (logits.round() - logits).detach()
    extremes = rounded.max() - torch.min(rounded) + rounded.max(1).values.sum()
    return F.cross_entropy(logits, batch.labels) + extremes


def of_ties_in_the_middle(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    logits = networks["student"](batch.inputs)
    rounded = logits + (logits.round() - logits).detach()
    return F.cross_entropy(logits, batch.labels) + 0.5 * rounded.median()


def knowing_its_graph(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    logits = networks["student"](batch.inputs)
    known = [logits.requires_grad, logits.grad_fn is not None, not logits.is_leaf, not logits.detach().requires_grad]
    return F.cross_entropy(logits, batch.labels) * (2.0 if all(known) else 1.0)


def normalised_in_its_graph(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    logits = networks["student"](batch.inputs)
    graph: Any = logits.grad_fn
    graph.register_prehook(lambda gradients: (gradients[0] / gradients[0].norm(),))
    return F.cross_entropy(logits, batch.labels)


def of_the_head(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    features = networks["student"].features(batch.inputs).detach()
    return F.cross_entropy(networks["student"].head(features), batch.labels)


OBJECTIVES = [tempered, of_ties, of_ties_in_the_middle, each_sample, reversed_by_a_hook, knowing_its_graph]
OBJECTIVES += [normalised_in_its_graph, of_the_head]


@both
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("architecture", [images, plain])
def test_an_objective_trains_as_by_hand(
    execute: Executor[Any], objective: Objective, architecture: Architecture
) -> None:
    assert_as_by_hand(execute, [request(client, architecture, objective) for client in range(CLIENTS)])


@both
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_an_objective_does_not_use_does_not_decay(execute: Executor[Any], name: str) -> None:
    optimiser = Optimiser(name, 0.1, weight_decay=0.1)
    requests = [replace(request(client, images, of_the_head), optimiser=optimiser) for client in range(CLIENTS)]
    assert_as_by_hand(execute, requests)


@both
def test_an_objective_may_train_another_model(execute: Executor[Any]) -> None:
    """Here one of the same architecture, which runs in the same module."""
    other = replace(request(4, plain), seed=9)
    known = fit(other)["student"]

    def program(client: int, asks: bool) -> Program[Model]:
        def run(ask: Ask) -> Model:
            def taught(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
                teacher = ask(other)["student"] if asks else known
                soft = Network(teacher.spec, teacher.tensors)(batch.inputs)
                return F.mse_loss(networks["student"](batch.inputs), soft)

            student: Model = ask(request(client, plain, taught))["student"]
            return student

        return run

    within, before = (execute([program(client, asks) for client in range(3)]) for asks in (True, False))
    for first, second in zip(within, before, strict=True):
        for name, tensor in first.tensors.items():
            torch.testing.assert_close(tensor, second.tensors[name], rtol=0, atol=1e-12)


class Counting(nn.Module):
    """Counts its calls, in evaluation too: in a buffer, in another one each time, or beside."""

    def __init__(self, width: int, where: str = "buffer") -> None:
        super().__init__()
        self.layer, self.calls, self.where = nn.Linear(STEPS * CHANNELS, width), 0, where
        self.register_buffer("counted", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.where == "buffer":
            self.counted += 1
        elif self.where == "another buffer":
            self.counted = self.counted + 1
        else:
            self.calls += 1
        features: Tensor = self.layer(inputs.flatten(1)) / (1 + self.counted + self.calls)
        return features


def counting(shape: tuple[int, ...], width: int) -> nn.Module:
    return Counting(width)


def counting_anew(shape: tuple[int, ...], width: int) -> nn.Module:
    return Counting(width, "another buffer")


def counting_beside(shape: tuple[int, ...], width: int) -> nn.Module:
    return Counting(width, "beside")


@pytest.mark.parametrize("architecture", [counting, counting_anew, counting_beside])
def test_a_teacher_that_counts_its_calls_does_so_under_either_plan(architecture: Architecture) -> None:
    def taught(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
        return F.mse_loss(networks["student"](batch.inputs), networks["teacher"](batch.inputs))

    requests = [
        replace(request(k, plain, taught), teachers={"teacher": request(k, architecture).models["student"]})
        for k in range(CLIENTS)
    ]
    found = [answered(execute, requests) for execute in (one_by_one, lockstep)]
    for first, second in zip(*found, strict=True):
        for name, tensor in first.tensors.items():
            torch.testing.assert_close(second.tensors[name], tensor, rtol=0, atol=1e-12)


class Excited(nn.Module):
    """Keeps that it has seen a batch of five."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.excited = nn.Linear(STEPS * CHANNELS, width), False

    def forward(self, inputs: Tensor) -> Tensor:
        self.excited |= len(inputs) == 5
        features: Tensor = self.layer(inputs.flatten(1))
        return features


def excited(shape: tuple[int, ...], width: int) -> nn.Module:
    return Excited(width)


def test_only_whose_module_keeps_something_is_trained_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' bits would depend on who else is there."""
    alone: list[int] = []

    def plainly(asked: Fit) -> dict[str, Model]:
        alone.append(asked.seed)
        return fit(asked)

    monkeypatch.setattr(executor, "answer", plainly)
    requests = [request(k, excited) for k in range(CLIENTS)]
    answered(lockstep, requests)
    assert sorted(alone) == [k for k in range(CLIENTS) if len(requests[k].samples) % 4 == 1]


@both
def test_two_teachers_of_one_architecture_have_modules_of_their_own(execute: Executor[Any]) -> None:
    def taught(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
        other = networks["other"](batch.inputs).sum() if "other" in networks else 0.0
        return F.mse_loss(networks["student"](batch.inputs), networks["teacher"](batch.inputs)) + 0 * other

    teachers = {name: request(k, counting_beside).models["student"] for k, name in enumerate(["teacher", "other"])}
    one = replace(request(0, plain, taught), teachers={"teacher": teachers["teacher"]})
    both_of_them = replace(one, teachers=teachers)
    (first,), (second,) = answered(execute, [one]), answered(execute, [both_of_them])
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())


def nothing(networks: Networks, batch: Batch, frozen: Tensors) -> Any:
    supervised(networks, batch, frozen)


def plain_number(networks: Networks, batch: Batch, frozen: Tensors) -> Any:
    return 3.0


def one_for_each_sample(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    return F.cross_entropy(networks["student"](batch.inputs[:3]), batch.labels[:3], reduction="none")


def detached(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    return supervised(networks, batch, frozen).detach()


@both
@pytest.mark.parametrize(
    ("objective", "found"),
    [
        (nothing, "found NoneType None."),
        (plain_number, "found float 3.0."),
        (one_for_each_sample, "found shape (3,)."),
        (detached, "found a tensor that does not: is it detached?."),
    ],
)
def test_an_objective_is_one_number(execute: Executor[Any], objective: Objective, found: str) -> None:
    for error in answered(execute, [request(client, plain, objective) for client in range(CLIENTS)]):
        assert isinstance(error, ValueError)
        expected = "objective: expected one number, as a tensor that depends on the models, "
        assert str(error) == expected + found


# -- draws


def dropped_by_python(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    return supervised(networks, batch, frozen) * random.random()  # noqa: S311 - no secret


def dropped_by_numpy(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    return supervised(networks, batch, frozen) * float(np.random.normal())


def dropped_by_torch(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    return supervised(networks, batch, frozen) * torch.rand(())


@both
@pytest.mark.parametrize("objective", [dropped_by_python, dropped_by_numpy, dropped_by_torch])
def test_what_an_objective_draws_is_the_clients_own(execute: Executor[Any], objective: Objective) -> None:
    requests = [request(client, plain, objective) for client in range(CLIENTS)]
    expected = [fit(asked)["student"] for asked in requests]
    assert not torch.equal(expected[0].tensors["head.bias"], fit(request(0, plain))["student"].tensors["head.bias"])
    for some in ([0, 1, 2, 3, 4], [3, 0], [2]):
        for k, model in zip(some, answered(execute, [requests[k] for k in some]), strict=True):
            assert all(torch.equal(tensor, model.tensors[name]) for name, tensor in expected[k].tensors.items())
