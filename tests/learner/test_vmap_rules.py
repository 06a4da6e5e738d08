"""Rules for vmap: what each client computes alone, in one call of torch's kernels wherever that is possible."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import avg_pool2d, group_norm, kl_div, margin_ranking_loss, triplet_margin_loss

from fedkd.learner.vmap_rules import own_rules

CLIENTS, BATCH, CHANNELS = 3, 2, 4
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return group_norm(x, 2, weight, bias, eps=0.1)


def centred(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return group_norm(x, 2) * weight[:, None, None] + bias[:, None, None]


def pooled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return avg_pool2d(x, 2, ceil_mode=True) * weight[:, None, None] + bias[:, None, None]


def pooled_single_images(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.stack([avg_pool2d(image, (3, 2)) for image in x]) + (weight * bias).sum()


def divergence(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    logits = weight[:, None, None] * x
    return kl_div(logits.log_softmax(1), bias.softmax(0)[:, None, None].expand_as(x), reduction="batchmean")


def ranking(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return margin_ranking_loss(x[:, 0] * weight[0], x[:, 1] + bias[1], x[:, 2].detach().sign(), margin=0.5)


def triplet(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return triplet_margin_loss(x.flatten(1), x.flatten(1) * weight[0], x.flatten(1).square() + bias[0])


LAYERS = [normalised, centred, pooled, pooled_single_images, divergence, ranking, triplet]


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    shapes = (CLIENTS, BATCH, CHANNELS, 5, 5), (CLIENTS, CHANNELS), (CLIENTS, CHANNELS)
    x, weight, bias = (torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes)
    return x, weight, bias


def together(function: Callable[..., Tensor], arguments: tuple[Tensor, ...], dims: tuple[int | None, ...]) -> Tensor:
    with own_rules():
        return vmap(function, in_dims=dims)(*arguments)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("axis", [0, 1, 4])
def test_each_client_gets_what_it_computes_alone(layer: Layer, axis: int) -> None:
    x, weight, bias = tensors()

    found = together(layer, (x.movedim(0, axis), weight, bias), (axis, 0, 0))

    torch.testing.assert_close(found, torch.stack(list(map(layer, x, weight, bias))))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shared", [0, 1, 2])
def test_what_all_clients_have_in_common_is_shared(layer: Layer, shared: int) -> None:
    given = tensors()
    common = tuple(t[0] if k == shared else t for k, t in enumerate(given))
    dims = tuple(None if k == shared else 0 for k in range(3))

    found = together(layer, common, dims)

    repeated = [t[0].expand_as(t) if k == shared else t for k, t in enumerate(given)]
    torch.testing.assert_close(found, torch.stack(list(map(layer, *repeated))))


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_each_clients_own_from_outside_and_from_within(layer: Layer) -> None:
    def loss(*arguments: Tensor) -> Tensor:
        return layer(*arguments).square().sum()

    leaves = [t.requires_grad_() for t in tensors()]
    rows = list(zip(*[t.detach() for t in leaves], strict=True))
    expected = [torch.stack([grad(loss, argnums=k)(*row) for row in rows]) for k in range(3)]

    outside = torch.autograd.grad(together(loss, tuple(leaves), (0, 0, 0)).sum(), leaves)

    torch.testing.assert_close(list(outside), expected)
    for k, wanted in enumerate(expected):
        torch.testing.assert_close(together(grad(loss, argnums=k), tensors(), (0, 0, 0)), wanted)


def test_each_layer_is_one_call_of_the_kernel_forwards_and_backwards() -> None:
    def gradients(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        outputs = together(lambda *given: avg_pool2d(normalised(*given), 2), tuple(leaves), (0, 0, 0))
        return torch.autograd.grad(outputs.sum(), leaves)

    recorded = make_fx(gradients)(*tensors())

    called = [str(node.target) for node in recorded.graph.nodes if node.op == "call_function"]
    for kernel in ("native_group_norm", "native_group_norm_backward", "avg_pool2d", "avg_pool2d_backward"):
        assert called.count(f"aten.{kernel}.default") == 1
    assert called.count("aten.clone.default") == 1, "only the inputs, which come client after client, are copied"
    assert "aten.mul.Tensor" not in called


def test_outside_vmap_nothing_changes() -> None:
    x, weight, bias = tensors()
    with own_rules():
        found = [layer(x[0], weight[0], bias[0]) for layer in LAYERS]
    assert all(torch.equal(one, layer(x[0], weight[0], bias[0])) for one, layer in zip(found, LAYERS, strict=True))
