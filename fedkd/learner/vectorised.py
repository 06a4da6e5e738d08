"""The gradients of many clients with one architecture, from one forward and one backward pass for all of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fedkd.learner.vmap_rules import own_rules

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""Returns the loss of one client's batch, and its buffers afterwards."""


def gradients_of(
    loss: Loss,
    parameters: Mapping[str, Tensor],
    *others: Any,  # noqa: ANN401 - tensors, or dictionaries of them
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the gradients of K clients' losses, and their buffers afterwards, by name, each of shape ``(K, ...)``.

    Only the forward pass is vectorised, by ``vmap``. Backwards, what came of it is differentiated as it is, in torch's
    own kernels: the sum of all losses has for gradients each client's own, as no loss knows another's parameters.

    Args:
        loss: pure function of one client's parameters and other arguments.
        parameters: by name, each ``(K, ...)``.
        others: what else the loss is of, each tensor ``(K, ...)``.
    """
    with torch.enable_grad():
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        with own_rules():
            losses, buffers = vmap(loss)(leaves, *others)
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True)), {name: buffer.detach() for name, buffer in buffers.items()}
