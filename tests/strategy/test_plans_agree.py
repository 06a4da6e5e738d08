"""The plans agree in single precision: all clients' logits on the test set, after a round of plain gradient descent."""

import numpy as np
import pytest
import torch

from fedkd import Result, simulate
from fedkd.data import sources
from fedkd.data.federation import build
from fedkd.learner import worth
from fedkd.learner.plan import plan
from fedkd.models import registry as models
from fedkd.strategy import (
    Strategy,
    contract,
)
from tests.strategy.test_contract import STRATEGIES, SharesAGenerator

LOGITS_AGREE_WITHIN = 1e-4
OF_TORCHVISION = {"resnet18", "shufflenet-v2-x0-5"}
SMALL_TEST_SET = {"data.validation": 1400, "data.test": 137}
GENTLE = {"train.batch_size": 4096, "train.lr": 0.001}
"""For norms over single pixels and short signals, which magnify rounding: whole shards, and small steps."""


VIEWS = {"signal-cnn": "rows", "stroke": "pairs", "vector": "flat", "fusion": "image@4+rows+flat"}
"""Of architectures that take no images, or more than one part."""


@pytest.fixture(scope="session")
def digits_of_all_kinds(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits as images, as signals of eight channels, as pairs of coordinates and as vectors."""
    path, digits = tmp_path_factory.mktemp("kinds") / "kinds.npz", sources.load("digits")
    image = digits.views["image"].numpy()
    views = {"image": image, "rows": image[:, 0], "pairs": image.reshape(-1, 2, 32), "flat": image.reshape(-1, 64)}
    np.savez(path, labels=digits.labels.numpy(), **views)
    return str(path)


def logits_apart(strategy: str | type[Strategy], architecture: str, data: str = "digits") -> float:
    """Return the largest difference between the logits of clients trained one by one and in cohorts."""
    gentle = GENTLE if architecture in {*OF_TORCHVISION, "signal-cnn"} else {}
    view = VIEWS.get(architecture, "image")
    changes = {"rounds": 1, "train.dtype": "float32", "federation.architectures": [architecture], **gentle}
    changes |= {"federation.views": [view], "data.name": data}
    if strategy == "fml":
        changes["strategies.fml.meme"] = architecture  # its own default takes images only
    one, other = (
        contract.experiment(strategy, {**changes, **SMALL_TEST_SET, "engine.plan": name}) for name in contract.PLANS
    )
    federation = build(other)
    assert [part.vectorised for part in plan(other, federation.holdings)] == [True]
    found = [logits(simulate(experiment), federation.test(view).inputs) for experiment in (one, other)]
    assert found[0].keys() == found[1].keys() != set()
    return max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0])


def logits(result: Result, inputs: torch.Tensor) -> dict[tuple[str, str], torch.Tensor]:
    """Return what every client's models say, by client and name; the server's where clients have none."""
    owners = result.client_models if any(result.client_models.values()) else {"the server": result.server_models}
    with torch.no_grad():
        return {(who, name): model.eval()(inputs) for who, own in owners.items() for name, model in own.items()}


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=[pytest.mark.slow] if name in OF_TORCHVISION else []) for name in models.names()],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_plans_agree_in_single_precision(
    strategy: str, architecture: str, digits_of_all_kinds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(worth.LARGEST_STEP, "cpu", float("inf"))  # large steps would be left alone, and agree
    assert logits_apart(strategy, architecture, digits_of_all_kinds) <= LOGITS_AGREE_WITHIN


def test_plans_that_do_not_agree_in_single_precision_are_found() -> None:
    assert logits_apart(SharesAGenerator, "mlp") > LOGITS_AGREE_WITHIN
