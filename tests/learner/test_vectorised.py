"""Gradients of many clients at once: those of each one alone."""

import torch
from torch import Tensor
from torch.func import grad
from torch.nn.functional import kl_div

from fedkd.learner.vectorised import gradients_of

CLIENTS = 5
Tensors = dict[str, Tensor]


def loss(parameters: Tensors, buffers: Tensors, inputs: Tensor) -> tuple[Tensor, Tensors]:
    """Have a function with a rule of our own, a parameter without use, and a buffer that follows a parameter."""
    logits = (inputs @ parameters["weight"]).log_softmax(-1)
    divergence = kl_div(logits, torch.full_like(logits, 1 / logits.shape[-1]), reduction="batchmean")
    return divergence, {"mean": buffers["mean"] + parameters["weight"].mean()}


def arguments() -> tuple[Tensors, Tensors, Tensor]:
    source = torch.Generator().manual_seed(0)
    draw = torch.float64
    parameters = {
        "weight": torch.randn(CLIENTS, 3, 4, generator=source, dtype=draw),
        "unused": torch.randn(CLIENTS, 2, generator=source, dtype=draw),
    }
    buffers = {"mean": torch.randn(CLIENTS, generator=source, dtype=draw)}
    return parameters, buffers, torch.randn(CLIENTS, 6, 3, generator=source, dtype=draw)


def test_each_client_has_its_own_gradients_and_buffers() -> None:
    parameters, buffers, inputs = arguments()

    with torch.no_grad():  # whatever the caller has set
        gradients, after = gradients_of(loss, parameters, buffers, inputs)

    for k in range(CLIENTS):
        own = {name: p[k] for name, p in parameters.items()}, {name: b[k] for name, b in buffers.items()}, inputs[k]
        expected, expected_after = grad(loss, has_aux=True)(*own)
        assert not expected.pop("unused").any()
        torch.testing.assert_close({name: g[k] for name, g in gradients.items() if g is not None}, expected)
        torch.testing.assert_close({name: b[k] for name, b in after.items()}, expected_after)
    assert [name for name, gradient in gradients.items() if gradient is None] == ["unused"]
    tensors = [*gradients.values(), *after.values(), *parameters.values()]
    assert not any(tensor.requires_grad for tensor in tensors if tensor is not None)


def test_a_client_without_a_finite_loss_spoils_only_its_own_gradients() -> None:
    parameters, buffers, inputs = arguments()
    inputs[2] = torch.nan

    gradients, _ = gradients_of(loss, parameters, buffers, inputs)

    finite = gradients["weight"].isfinite().all(dim=(1, 2))
    assert finite.tolist() == [True, True, False, True, True]
