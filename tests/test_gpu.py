"""On a GPU: the same functions, the same federations, equal bits every time. Skipped where there is none."""

from dataclasses import is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fedkd import simulate
from fedkd.config import Experiment
from fedkd.data.federation import build
from fedkd.engine.result import Result
from fedkd.learner import worth
from fedkd.learner.plan import plan
from fedkd.seeding import seed_torch
from fedkd.strategy import contract
from tests.strategy.test_contract import STRATEGIES
from tests.strategy.test_plans_agree import LOGITS_AGREE_WITHIN, logits
from tests.test_refusals import Call, every_call

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
every_plan = pytest.mark.parametrize("name", contract.PLANS)


def on(device: str, value: Any) -> Any:
    """Return a value with its tensors and modules on a device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor | nn.Module) else leaf, value)


def experiment(strategy: str, **changes: Any) -> Experiment:
    small = {"federation.architectures": ["cnn"], "rounds": 1}
    return contract.experiment(strategy, {"train.device": "cuda", "train.dtype": "float32", **small, **changes})


def cpu_logits(result: Result, inputs: Tensor) -> dict[tuple[str, str], Tensor]:
    for own in [*result.client_models.values(), result.server_models]:
        for model in own.values():
            model.cpu()
    return logits(result, inputs.cpu())


def apart(one: Experiment, other: Experiment) -> float:
    """Return the largest difference between the logits of the models of two experiments."""
    inputs = build(one).test("image").inputs
    found = [cpu_logits(simulate(each), inputs) for each in (one, other)]
    assert found[0].keys() == found[1].keys() != set()
    return max(float((found[0][name].double() - found[1][name].double()).abs().max()) for name in found[0])


@every_call
def test_functions_give_what_they_give_on_a_cpu(call: Call) -> None:
    close = 1e-4 if call.function.__name__.startswith("fit_") else 1e-9  # a search ends where the loss is flat
    torch.testing.assert_close(on("cpu", outcome(call, "cuda")), outcome(call, "cpu"), rtol=close, atol=close)


def outcome(call: Call, device: str) -> Any:
    seed_torch(0)  # what starts a memory draws it
    found = call.function(**on(device, call.values))
    if not is_dataclass(found):
        return found
    return [part for part in vars(found).values() if isinstance(part, Tensor | float | int)]


@every_plan
@every_strategy
def test_equal_bits_every_time(strategy: str, name: str) -> None:
    asked = experiment(strategy, **{"engine.plan": name})
    assert simulate(asked).digest == simulate(asked).digest


@every_strategy
def test_plans_agree(strategy: str) -> None:
    one, other = (experiment(strategy, **{"engine.plan": name}) for name in contract.PLANS)
    assert any(part.vectorised for part in plan(other, build(other).holdings))
    assert apart(one, other) <= LOGITS_AGREE_WITHIN


@every_strategy
def test_agrees_with_a_cpu(strategy: str) -> None:
    there = experiment(strategy, **{"train.dtype": "float64"})
    assert apart(there.changed(**{"train.device": "cpu"}), there) <= 1e-9


@every_plan
def test_memory_does_not_grow(name: str) -> None:
    held: list[int] = []
    asked = experiment("fedmd", rounds=8, **{"engine.plan": name})
    simulate(asked, on_round=lambda _: held.append(torch.cuda.memory_allocated()))
    assert max(held[3:]) <= max(held[:3]) + 2**20


@every_plan
def test_trains_in_bfloat16(name: str) -> None:
    asked = experiment("fedmd", **{"engine.plan": name, "train.dtype": "bf16-mixed"})
    models = [model for own in simulate(asked).client_models.values() for model in own.values()]
    assert all(weights.isfinite().all() for model in models for weights in model.parameters())
    assert apart(asked, experiment("fedmd", **{"engine.plan": name})) > 0


def test_larger_steps_are_vectorised_there() -> None:
    asked = experiment("fedmd", **{"engine.plan": "cohorts", "train.batch_size": 256})
    there, here = (plan(one, build(one).holdings) for one in (asked, asked.changed(**{"train.device": "cpu"})))
    assert worth.LARGEST_STEP["cuda"] > worth.LARGEST_STEP["cpu"]
    assert [part.vectorised for part in there] != [part.vectorised for part in here]
