"""The gradients of many clients with one architecture, from one forward and one backward pass for all of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fedkd.learner.vmap_rules import own_rules

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""Returns the loss of one client's batch, and its tensors that are not trained afterwards."""


def gradients_of(
    loss: Loss,
    parameters: Mapping[str, Tensor],
    *others: Any,  # noqa: ANN401 - tensors, or dictionaries of them
) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
    """Return the gradients of K clients' losses, and their other tensors afterwards, by name, each ``(K, ...)``.

    Only the forward pass is vectorised, by ``vmap``. Backwards, what came of it is differentiated as it is, in torch's
    own kernels: the sum of all losses has for gradients each client's own, as no loss knows another's parameters.

    Args:
        loss: pure function of one client's parameters and other arguments.
        parameters: by name, each ``(K, ...)``.
        others: what else the loss is of, each tensor ``(K, ...)``.

    Returns:
        A gradient is None where no loss depends on the parameter.
    """
    with torch.enable_grad():
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        with own_rules():
            losses, afterwards = vmap(loss)(leaves, *others)
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
    return dict(zip(leaves, gradients, strict=True)), {name: tensor.detach() for name, tensor in afterwards.items()}
