"""What a run gives back to Python."""

import pytest
import torch

from fedkd.engine import result as result_module
from fedkd.engine.result import make_result
from fedkd.learner.model import Model, Network, fresh
from fedkd.learner.model_file import to_module
from fedkd.models import ModelSpec

MLP, CNN = (ModelSpec(architecture, (1, 8, 8), 10, 8) for architecture in ("mlp", "cnn"))


def test_models_become_modules_that_compute_the_same() -> None:
    like = torch.empty(0, dtype=torch.float64)
    models = {"a": {"student": fresh(MLP, 1, like), "meme": fresh(CNN, 2, like)}, "b": {"student": fresh(CNN, 3, like)}}
    server = {"image": fresh(CNN, 4, like)}

    result = make_result({"digest": "d", "metrics": {"x": None}}, [], [], server, models, None)

    inputs = torch.randn(5, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs = [(server["image"], result.server_models["image"])]
    pairs += [
        (model, result.client_models[key][name]) for key, named in models.items() for name, model in named.items()
    ]
    assert len(pairs) == 4
    for model, module in pairs:
        assert not module.training
        expected = Network(model.spec, model.tensors)(inputs)
        with torch.no_grad():
            assert torch.allclose(module(inputs), expected, rtol=1e-12)
        for parameter in module.parameters():
            parameter.data.zero_()  # a module's weights are its own
        assert any(tensor.abs().sum() > 0 for tensor in model.tensors.values())


def test_a_clients_modules_are_built_when_they_are_asked_for_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    like, built = torch.empty(0), list[Model]()
    models = {key: {"student": fresh(MLP, seed, like)} for seed, key in enumerate(("a", "b"))}
    monkeypatch.setattr(result_module, "to_module", lambda model: built.append(model) or to_module(model))

    result = make_result({}, [], [], {}, models, None)

    assert (list(result.client_models), len(result.client_models), "c" in result.client_models) == (
        ["a", "b"],
        2,
        False,
    )
    assert built == []
    assert result.client_models["b"]["student"] is result.client_models["b"]["student"]
    assert built == [models["b"]["student"]]
    with pytest.raises(KeyError):
        result.client_models["c"]
    assert make_result({}, [], [], {}, {}, None).client_models == {}


def test_digest_and_metrics_are_those_of_the_summary() -> None:
    metrics = {"clients_global": {"accuracy": 0.5}, "server_global": None}

    result = make_result({"digest": "abc", "metrics": metrics}, [{"round": 1}], [{"client": "a"}], {}, {}, None)

    assert result.digest == "abc"
    assert result.metrics is metrics
    assert (result.rounds, result.clients, result.folder) == ([{"round": 1}], [{"client": "a"}], None)
