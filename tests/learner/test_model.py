"""Models as data: parameters and buffers, fresh starts, and the network an objective sees."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from fedkd import models
from fedkd.learner.model import BoundNetwork, Model, Network, fresh, layout
from fedkd.models import ModelSpec

SPEC = ModelSpec("cnn-bn", (2, 6, 6), classes=3, feature_width=5)
LIKE = torch.empty(0, dtype=torch.float64)


def module_of(model: Model) -> nn.Module:
    module = models.build(model.spec).double()
    module.load_state_dict(dict(model.tensors))
    return module


def inputs(rows: int = 7) -> Tensor:
    return torch.randn(rows, *SPEC.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_parameters_and_buffers_are_those_of_the_module() -> None:
    model, module = fresh(SPEC, 0, LIKE), models.build(SPEC)
    assert list(model.parameters) == [name for name, _ in module.named_parameters()]
    assert list(model.others) == [name for name, _ in module.named_buffers()]
    assert "features.1.running_mean" in model.others
    assert set(model.tensors) == set(module.state_dict())
    assert all(model.parameters[name] is model.tensors[name] for name in model.parameters)


def test_a_fresh_model_has_the_dtype_asked_for_and_depends_on_the_seed_only() -> None:
    torch.manual_seed(1)
    model = fresh(SPEC, 3, LIKE)
    torch.manual_seed(2)
    again, other = fresh(SPEC, 3, LIKE), fresh(SPEC, 4, LIKE)
    assert all(p.dtype == torch.float64 for p in model.parameters.values())
    assert all(torch.equal(t, again.tensors[name]) for name, t in model.tensors.items())
    assert not torch.equal(model.tensors["head.weight"], other.tensors["head.weight"])
    assert model.tensors["features.1.num_batches_tracked"].dtype == torch.int64


def test_with_tensors_changes_a_copy() -> None:
    model = fresh(SPEC, 0, LIKE)
    tensors = {name: torch.zeros_like(t) for name, t in model.tensors.items()}
    changed = model.with_tensors(tensors)
    tensors.clear()
    assert changed.spec == SPEC
    assert not changed.tensors["head.weight"].any()
    assert model.tensors["head.weight"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layout_is_that_of_a_fresh_model(dtype: torch.dtype) -> None:
    tensors = fresh(SPEC, 0, torch.empty(0, dtype=dtype)).tensors
    assert layout(SPEC, dtype) == {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    assert layout(SPEC, dtype)["head.weight"] == ((3, 5), dtype)


@pytest.mark.parametrize("training", [True, False])
def test_a_network_computes_what_the_module_does(training: bool) -> None:
    model = fresh(SPEC, 0, LIKE)
    tensors = {name: t.clone() for name, t in model.tensors.items()}
    module = module_of(model).train(training)
    network = BoundNetwork(SPEC, tensors, number=0) if training else Network(SPEC, tensors)
    assert torch.equal(network(inputs()), module(inputs()))
    for name, expected in module.state_dict().items():
        assert torch.equal(tensors[name], expected)
    changed = not torch.equal(tensors["features.1.running_mean"], model.tensors["features.1.running_mean"])
    assert changed == training


def test_the_two_halves_make_the_whole() -> None:
    model = fresh(SPEC, 0, LIKE)
    network, module = Network(SPEC, model.tensors), module_of(model).eval()
    features = network.features(inputs())
    assert torch.equal(features, module.features(inputs()))
    assert features.shape == (7, 5)
    assert torch.equal(network.head(features), network(inputs()))


def test_gradients_reach_the_bound_tensors() -> None:
    model = fresh(SPEC, 0, LIKE)
    leaves = {name: p.clone().requires_grad_() for name, p in model.parameters.items()}
    Network(SPEC, {**leaves, **model.others})(inputs()).sum().backward()
    module = module_of(model).eval()
    module(inputs()).sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(leaves[name].grad, parameter.grad, rtol=1e-12, atol=1e-14)


def test_layers_of_the_feature_part_can_be_captured() -> None:
    spec = ModelSpec("mlp", SPEC.input_shape, classes=3, feature_width=5)
    first, second = (fresh(spec, seed, torch.empty(0, dtype=torch.float64)) for seed in (0, 1))
    for network in (Network(first.spec, first.tensors), BoundNetwork(spec, second.tensors, number=0)):
        features, layers = network.captured(inputs(), ["1", "2:input"])
        assert torch.equal(features, network.features(inputs()))
        assert torch.equal(layers["1"], layers["2:input"])
    weight, bias = (second.tensors[f"features.1.{name}"] for name in ("weight", "bias"))
    assert torch.equal(layers["1"], nn.functional.linear(inputs().flatten(1), weight, bias))


def test_a_bound_network_lets_go_of_its_tensors() -> None:
    model = fresh(SPEC, 0, LIKE)
    bound = BoundNetwork(SPEC, model.tensors, number=0)
    before = bound(inputs())
    bound.release()
    mine = [weakref.ref(tensor) for tensor in model.tensors.values()]
    del model, before
    assert [ref() for ref in mine] == [None] * len(mine)
