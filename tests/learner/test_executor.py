"""Lockstep and one-by-one: the same results, and one client's mistake is not another's."""

import os
import sys
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedkd.data.samples import Samples
from fedkd.learner import executor
from fedkd.learner.cohort import answer_together
from fedkd.learner.executor import Executor, Program, lockstep, one_by_one
from fedkd.learner.fit import fit
from fedkd.learner.model import Model, Network, fresh
from fedkd.learner.requests import Ask, Batch, Fit, Objective, OnTarget, Predict, Request
from fedkd.models import ModelSpec
from fedkd.optimisers import Optimiser

CLIENTS, CLASSES = 6, 3
SPEC = ModelSpec("mlp", (5,), CLASSES, feature_width=4)
Networks = Mapping[str, Network]
Tensors = Mapping[str, Tensor]

both = pytest.mark.parametrize("execute", [one_by_one, lockstep], ids=["one_by_one", "lockstep"])


def samples(client: int, dtype: torch.dtype) -> Samples:
    source = torch.Generator().manual_seed(client)
    rows = 9 + 4 * (client % 3)
    inputs = torch.randn(rows, 5, generator=source, dtype=torch.float64).to(dtype)
    return Samples(torch.arange(rows), inputs, {"labels": torch.randint(0, CLASSES, (rows,), generator=source)})


def request(
    client: int, objective: Objective, dtype: torch.dtype = torch.float64, spec: ModelSpec = SPEC, **models: Model
) -> Fit:
    trained = models or {"student": fresh(spec, client, torch.empty(0, dtype=dtype))}
    return Fit(trained, samples(client, dtype), objective, 1, 4, Optimiser("sgd", 0.1), seed=client)


def supervised(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    return F.cross_entropy(networks["student"](batch.inputs), batch.labels)


def mutual(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    first, second = networks["student"](batch.inputs), networks["meme"](batch.inputs)
    return F.cross_entropy(first, batch.labels) + F.mse_loss(second, first.detach()) + second.square().mean()


def broken(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    networks["student"](batch.inputs)
    raise ArithmeticError("this objective cannot be right")


def dropped(input_shape: tuple[int, ...], feature_width: int) -> torch.nn.Module:
    """An architecture of a user's own that cannot be vectorised."""
    return torch.nn.Sequential(torch.nn.Linear(*input_shape, feature_width), torch.nn.Dropout())


def wandering(client: int) -> Program[tuple[list[str], dict[str, Tensor]]]:
    """A program with branches on its data, a number of requests of its own, and at times two models."""

    def program(ask: Ask) -> tuple[list[str], dict[str, Tensor]]:
        path, models = [], ask(request(client, supervised))
        for _ in range(client):
            logits = ask(Predict(models["student"], samples(client, torch.float64).inputs))
            if float(logits.mean()) > 0:
                path.append("mutual")
                meme = fresh(SPEC, 100 + client, logits)
                models = ask(request(client, mutual, student=models["student"], meme=meme))
            elif client % 2:
                path.append("plain")
                models = ask(request(client, OnTarget(F.cross_entropy, "student", "labels"), **models))
            else:
                path.append("features")
                features = ask(Predict(models["student"], samples(client, torch.float64).inputs, "features"))
                head = models["student"].tensors["head.bias"] + float(features.mean())
                models = {"student": models["student"].with_tensors({**models["student"].tensors, "head.bias": head})}
        return path, {f"{name}/{key}": t for name, model in models.items() for key, t in model.tensors.items()}

    return program


def test_lockstep_equals_one_by_one_whatever_way_the_clients_go() -> None:
    alone = one_by_one([wandering(client) for client in range(CLIENTS)])
    together = lockstep([wandering(client) for client in range(CLIENTS)])
    paths = []
    for first, second in zip(alone, together, strict=True):
        assert not isinstance(first, Exception)
        assert not isinstance(second, Exception)
        assert first[0] == second[0]
        assert first[1].keys() == second[1].keys()
        for name, tensor in first[1].items():
            torch.testing.assert_close(second[1][name], tensor, rtol=0, atol=1e-9)
        paths.append(first[0])
    assert {step for path in paths for step in path} == {"mutual", "plain", "features"}
    assert len(set(map(tuple, paths))) == CLIENTS


@both
def test_results_come_in_the_order_of_the_programs(execute: Executor[Any]) -> None:
    def program(client: int) -> Program[int]:
        def run(ask: Ask) -> int:
            for _ in range(CLIENTS - client):
                ask(request(client, supervised))
            return client

        return run

    assert execute([program(client) for client in range(CLIENTS)]) == list(range(CLIENTS))
    assert execute([lambda ask: None]) == [None]
    assert execute([]) == []


# -- what is answered together


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of the groups that are answered together, in the order in which they are."""
    sizes: list[int] = []
    genuine = executor.answer_together

    def counted(requests: Sequence[Request]) -> list[Any]:
        sizes.append(len(requests))
        return genuine(requests)

    monkeypatch.setattr(executor, "answer_together", counted)
    return sizes


def asking(*make: Callable[[int], Request]) -> list[Program[None]]:
    def program(client: int) -> Program[None]:
        def run(ask: Ask) -> None:
            for one in make:
                ask(one(client))

        return run

    return [program(client) for client in range(CLIENTS)]


def made_by(value: float) -> Objective:
    return lambda networks, batch, frozen: value * supervised(networks, batch, frozen)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda client: request(client, supervised), [6]),
        (lambda client: request(client, OnTarget(F.cross_entropy, "student", "labels")), [6]),
        (lambda client: request(client, made_by(2.0)), [6]),
        (lambda client: request(client, lambda n, b, f: 2 * supervised(n, b, f)), [6]),
        (lambda client: request(client, made_by(float(client % 2))), [3, 3]),
        (lambda client: request(client, made_by(float(client))), [1, 1, 1, 1, 1, 1]),
        (lambda client: request(client, supervised, spec=ModelSpec("mlp", (5,), CLASSES, 4 + client // 4)), [4, 2]),
        (lambda client: Predict(fresh(SPEC, client, torch.empty(0)), torch.zeros(4 + client // 2, 5)), [2, 2, 2]),
        (lambda client: request(client, supervised) if client else Predict(
            fresh(SPEC, client, torch.empty(0)), torch.zeros(4, 5)), [1, 5]),
    ],
    ids=["function", "plain fit", "closure", "lambda", "two closures", "six closures", "specs", "rows", "kinds"],
)  # fmt: skip
def test_equal_requests_are_answered_together(
    make: Callable[[int], Request], expected: list[int], groups: list[int]
) -> None:
    assert lockstep(asking(make)) == [None] * CLIENTS
    assert groups == expected


def test_a_client_that_is_done_waits_for_nobody(groups: list[int]) -> None:
    def program(client: int) -> Program[int]:
        def run(ask: Ask) -> int:
            for _ in range(client):
                ask(request(client, supervised))
            return client

        return run

    assert lockstep([program(client) for client in range(4)]) == [0, 1, 2, 3]
    assert groups == [3, 2, 1]


# -- exceptions


def training(client: int) -> Program[Model]:
    def run(ask: Ask) -> Model:
        for _ in range(3):
            model: Model = ask(request(client, supervised, torch.float32))["student"]
        return model

    return run


def failing(after: int) -> Program[Model]:
    def run(ask: Ask) -> Model:
        for _ in range(after):
            ask(request(99, supervised, torch.float32))
        raise KeyError("a client's own mistake")

    return run


def same_bits(first: object, second: object) -> bool:
    assert isinstance(first, Model)
    assert isinstance(second, Model)
    return all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())


@both
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_clients_exception_leaves_the_others_bits_alone(execute: Executor[Any], after: int) -> None:
    expected = execute([training(client) for client in range(3)])
    found = execute([training(0), failing(after), training(1), training(2)])
    error = found.pop(1)
    assert isinstance(error, KeyError)
    assert error.args == ("a client's own mistake",)
    assert all(same_bits(first, second) for first, second in zip(found, expected, strict=True))


@both
def test_a_broken_objective_reaches_each_client_that_asked_and_only_those(execute: Executor[Any]) -> None:
    def asks_for_it(client: int) -> Program[Model]:
        def run(ask: Ask) -> Model:
            ask(request(client, supervised, torch.float32))
            ask(request(client, broken, torch.float32))
            raise AssertionError("never reached")

        return run

    expected = execute([training(0), training(1)])
    found = execute([asks_for_it(5), training(0), asks_for_it(3), training(1), asks_for_it(4)])
    for k in (0, 2, 4):
        assert isinstance(found[k], ArithmeticError)
        assert "broken" in [frame.name for frame in traceback.extract_tb(found[k].__traceback__)]
    assert same_bits(found[1], expected[0])
    assert same_bits(found[3], expected[1])


@both
@pytest.mark.parametrize("architecture", ["mlp", "own_models:dropped"])
def test_a_client_whose_data_are_at_fault_fails_alone(
    execute: Executor[Any], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "own_models", sys.modules[__name__])
    spec = ModelSpec(architecture, (5,), CLASSES, feature_width=4)

    def program(client: int, label: int) -> Program[Model]:
        def run(ask: Ask) -> Model:
            asked = request(client, supervised, torch.float32, spec)
            asked.samples.labels[0] = label
            model: Model = ask(asked)["student"]
            return model

        return run

    expected = execute([program(0, 0), program(1, 0)])
    found = execute([program(0, 0), program(2, CLASSES), program(1, 0)])
    assert isinstance(found[1], IndexError | RuntimeError)
    assert "out of bounds" in str(found[1])
    assert same_bits(found[0], expected[0])
    assert same_bits(found[2], expected[1])


@both
def test_a_program_may_catch_what_its_question_raised(execute: Executor[Any]) -> None:
    def careful(ask: Ask) -> str:
        try:
            ask(request(0, broken))
        except ArithmeticError:
            ask(request(0, supervised))
            return "went on"
        return "never reached"

    assert execute([careful, careful]) == ["went on", "went on"]


LEFT = ExitStack()
"""Keeps what a client has entered, and never leaves it."""


def switches() -> tuple[bool, bool, bool]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")


@both
@pytest.mark.parametrize(
    ("switched", "expected"),
    [
        (torch.no_grad, (False, False, False)),
        (torch.inference_mode, (False, True, False)),
        (lambda: torch.autocast("cpu", torch.bfloat16), (True, False, True)),
    ],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_one_clients_switches_are_its_own(
    execute: Executor, switched: Callable[[], AbstractContextManager[Any]], expected: tuple[bool, bool, bool]
) -> None:
    usual = (True, False, False)
    answers: list[Model] = []

    def with_(ask: Ask) -> tuple[bool, bool, bool]:
        with switched():
            answers.append(ask(request(0, supervised))["student"])
            return switches()

    def without(ask: Ask) -> tuple[bool, bool, bool]:
        answers.append(ask(request(0, supervised))["student"])
        return switches()

    assert execute([with_, without, with_]) == [expected, usual, expected]
    assert switches() == usual
    assert all(same_bits(answer, answers[0]) for answer in answers)
    assert not any(tensor.is_inference() for answer in answers for tensor in answer.tensors.values())


@both
@pytest.mark.parametrize(
    "switch",
    [
        lambda: torch.set_grad_enabled(False),
        lambda: torch.set_autocast_enabled("cpu", True),
        lambda: LEFT.enter_context(torch.inference_mode()),
    ],
)
def test_what_a_client_leaves_switched_is_over_with_it(execute: Executor[Any], switch: Callable[[], object]) -> None:
    def careless(ask: Ask) -> tuple[bool, bool, bool]:
        switch()
        ask(request(0, supervised))
        return switches()

    def next_one(ask: Ask) -> tuple[bool, bool, bool]:
        return switches()

    first, *others = execute([careless, next_one, next_one])
    assert first != (True, False, False)
    assert others == [(True, False, False)] * 2
    assert switches() == (True, False, False)


class Odd(BaseException):
    """No exception that anybody catches."""


@both
def test_whatever_a_client_raises_ends_it_alone(execute: Executor[Any]) -> None:
    def odd(ask: Ask) -> Model:
        ask(request(0, supervised))
        raise Odd("no mistake")

    found = execute([odd, training(1)])

    assert isinstance(found[0], RuntimeError)
    assert str(found[0]) == "the client half raised Odd: no mistake"
    assert not isinstance(found[1], Exception)

    def interrupted(ask: Ask) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute([interrupted])


@both
@pytest.mark.parametrize("after", [False, True])
def test_what_a_client_changes_of_its_process_no_other_meets(
    execute: Executor[Any], after: bool, tmp_path: Path
) -> None:
    def state() -> tuple[torch.dtype, int, str, torch.device]:
        return torch.get_default_dtype(), torch.get_num_threads(), os.getcwd(), torch.get_default_device()

    def careless(ask: Ask) -> None:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_num_threads(before[1] + 1)
        os.chdir(tmp_path)
        if not after:
            ask(request(0, supervised))

    def next_one(ask: Ask) -> tuple[torch.dtype, int, str, torch.device]:
        ask(request(1, supervised))
        return state()

    before = state()
    _, found = execute([careless, next_one])
    assert found == state() == before


@both
def test_frozen_tensors_may_be_made_for_inference(execute: Executor[Any]) -> None:
    def pulled(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
        return (networks["student"](batch.inputs) * frozen["pull"]).mean()

    with torch.inference_mode():
        pull = torch.ones(CLASSES, dtype=torch.float64)

    expected = fit(replace(request(0, pulled), frozen={"pull": pull.clone()}))["student"]
    for found in execute([lambda ask: ask(replace(request(0, pulled), frozen={"pull": pull}))["student"]] * 2):
        for name, tensor in expected.tensors.items():
            torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=1e-12)


@both
def test_an_objective_may_ask(execute: Executor[Any]) -> None:
    def program(ask: Ask) -> Model:
        teacher = fresh(SPEC, 7, torch.empty(0, dtype=torch.float64))

        def taught(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
            return F.mse_loss(networks["student"](batch.inputs), ask(Predict(teacher, batch.inputs)))

        return ask(request(0, taught))["student"]

    first, second = execute([program, program])
    assert same_bits(first, second)


def in_bfloat16(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    """Cast by itself, whatever the request says."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = networks["student"](batch.inputs)
    return F.cross_entropy(logits.float(), batch.labels)


@both
@pytest.mark.parametrize(("objective", "autocast"), [(supervised, True), (in_bfloat16, False)])
@pytest.mark.parametrize("switched", [nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_in_bfloat16_each_step_is_computed_with_the_weights_of_the_step_before(
    execute: Executor[Any], objective: Objective, autocast: bool, switched: Callable[[], AbstractContextManager[Any]]
) -> None:
    def asked(client: int) -> Fit:
        return replace(request(client, objective, torch.float32), epochs=20, autocast=autocast)

    def program(client: int) -> Program[Model]:
        def run(ask: Ask) -> Model:
            with switched():
                model: Model = ask(asked(client))["student"]
                return model

        return run

    found = execute([program(client) for client in range(CLIENTS)])
    for client, model in enumerate(found):
        alone = fit(asked(client))["student"]
        assert isinstance(model, Model)
        for name, tensor in alone.tensors.items():
            apart = float((model.tensors[name] - tensor).abs().max())
            assert apart == 0 if execute is one_by_one else apart < 0.05


def branching(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    """Look at a value, which vmap does not allow."""
    loss = supervised(networks, batch, frozen)
    return loss * 2 if loss.item() > 1.0 else loss


def counting(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    """Leave torch: vmap's error does not say so."""
    return supervised(networks, batch, frozen) / len(set(batch.labels.tolist()))


@both
@pytest.mark.parametrize("objective", [branching, counting])
def test_what_vmap_cannot_do_the_plain_loop_does_and_it_is_said_once(
    execute: Executor[Any], objective: Objective, caplog: pytest.LogCaptureFixture
) -> None:
    def program(client: int) -> Program[Model]:
        return lambda ask: ask(request(client, objective))["student"]

    executor._tell.cache_clear()
    for _ in range(2):
        for client, found in enumerate(execute([program(client) for client in range(CLIENTS)])):
            assert same_bits(found, fit(request(client, objective))["student"])

    expected = ["cohorts: clients with mlp are trained one by one, since vmap fails: "] if execute is lockstep else []
    assert [message[: message.index("fails: ") + 7] for message in caplog.messages] == expected


def test_one_client_at_fault_costs_the_others_little(groups: list[int]) -> None:
    def program(client: int) -> Program[Model]:
        def run(ask: Ask) -> Model:
            asked = request(client, supervised)
            asked.samples.labels[0] = CLASSES if client == 11 else 0
            model: Model = ask(asked)["student"]
            return model

        return run

    found = lockstep([program(client) for client in range(16)])

    assert [k for k, model in enumerate(found) if isinstance(model, Exception)] == [11]
    assert groups == [16, 8, 8, 4, 2, 2, 1, 1, 4]


def exiting(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    raise SystemExit(3)


def among_themselves() -> Objective:
    """Return an objective that holds another one, which holds it."""

    def first(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
        return supervised(networks, batch, frozen) if batch.inputs.numel() else second(networks, batch, frozen)

    def second(networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
        return first(networks, batch, frozen)

    return first


class Unhashable:
    """An objective that cannot be compared."""

    def __call__(self, networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
        return supervised(networks, batch, frozen)

    def __hash__(self) -> int:
        raise RuntimeError("cannot be compared")


@both
@pytest.mark.parametrize("objective", [exiting, among_themselves(), Unhashable()])
def test_one_clients_odd_objective_is_no_others_concern(execute: Executor[Any], objective: Objective) -> None:
    def program(client: int) -> Program[Model]:
        return lambda ask: ask(request(client, supervised if client else objective))["student"]

    odd, *others = execute([program(client) for client in range(4)])

    assert others
    assert all(isinstance(model, Model) for model in others)
    if objective is exiting:
        assert isinstance(odd, RuntimeError)
        assert str(odd) == "the client half called exit(3)"
    else:
        assert isinstance(odd, Model)


def drawing(input_shape: tuple[int, ...], feature_width: int) -> torch.nn.Module:
    return Drawing(input_shape[0], feature_width)


class Drawing(torch.nn.Module):
    """Drops in evaluation too."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(inputs, width)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.dropout(self.layer(inputs), 0.5, training=True)


def test_predictions_that_draw_do_so_on_their_own_seeds() -> None:
    spec = ModelSpec(f"{__name__}:drawing", (5,), CLASSES, feature_width=8)

    def program(client: int, seed: int) -> Program[Tensor]:
        return lambda ask: ask(Predict(fresh(spec, client, torch.empty(0)), torch.ones(6, 5), seed=seed))

    programs = [program(client, client) for client in range(3)]
    expected = one_by_one(programs)
    for order in ([0, 1, 2], [2, 1, 0], [1]):
        for k, found in zip(order, lockstep([programs[k] for k in order]), strict=True):
            assert torch.equal(found, expected[k])
    assert not torch.equal(one_by_one([program(0, 7)])[0], expected[0])


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_short_memory_on_a_cpu_is_told_too(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(requests: Sequence[Request]) -> list[Any]:
        raise error

    monkeypatch.setattr(executor, "answer_together", short)
    assert lockstep([training(client) for client in range(2)]) == [error, error]


def test_what_failed_together_is_freed_before_the_halves_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def short(requests: Sequence[Request]) -> list[Any]:
        alive.append(sum(reference() is not None for reference in held))
        stacked = torch.zeros(len(requests))
        held.append(weakref.ref(stacked))
        if len(requests) > 1:
            raise torch.OutOfMemoryError("more than there is")
        return answer_together(requests)

    monkeypatch.setattr(executor, "answer_together", short)
    assert all(isinstance(model, Model) for model in lockstep([training(client) for client in range(4)]))
    assert len(alive) >= 7
    assert not any(alive)


def test_where_memory_is_short_nobody_trains_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(requests: Sequence[Request]) -> list[Any]:
        if len(requests) > 2:
            raise torch.OutOfMemoryError("more than there is")
        return answer_together(requests)

    def shorter(requests: Sequence[Request]) -> list[Any]:
        raise torch.OutOfMemoryError("more than there is")

    programs: list[Program[Any]] = [training(client) for client in range(4)]
    expected = lockstep(programs)
    monkeypatch.setattr(executor, "answer_together", short)
    assert all(same_bits(first, second) for first, second in zip(lockstep(programs), expected, strict=True))
    monkeypatch.setattr(executor, "answer_together", shorter)
    assert all(isinstance(error, torch.OutOfMemoryError) for error in lockstep(programs))
