"""Clients as channels: to a layer that treats channels singly or in groups, K clients are one with K times as many.

So ``vmap`` vectorises convolutions already. GroupNorm and average pooling it takes apart, and copies what goes in and
out; here each is one call of torch's own kernels, forwards and backwards.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, group_norm
from torch.overrides import TorchFunctionMode

Layer = Callable[..., Tensor]
"""Maps K, inputs ``(B, K * C, ...)``, and scales ``(K * C,)`` if it has any, to outputs ``(B, K * C, ...)``."""
_AXES = 4  # batch, channels, height, width


@contextmanager
def clients_as_channels() -> Iterator[None]:
    """Compute such layers in this way within ``vmap``."""
    with _Folding():
        yield


class _Folding(TorchFunctionMode):
    """Takes over some functions of torch."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: object,
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        if function is group_norm:
            function = _group_norm
        if function is avg_pool2d:
            function = _avg_pool2d
        return function(*arguments, **named or {})


def _group_norm(
    inputs: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    def layer(clients: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm(x, clients * num_groups, weight, bias, eps)

    if weight is None or bias is None:
        return group_norm(inputs, num_groups, weight, bias, eps)
    outputs: Tensor = _Folded.apply(layer, inputs, weight, bias)
    return outputs


def _avg_pool2d(inputs: Tensor, *arguments: Any, **named: Any) -> Tensor:  # noqa: ANN401 - as torch's own
    def layer(_clients: int, x: Tensor) -> Tensor:
        return avg_pool2d(x, *arguments, **named)

    if inputs.dim() != _AXES:
        return layer(1, inputs)
    outputs: Tensor = _Folded.apply(layer, inputs)
    return outputs


class _Folded(torch.autograd.Function):
    """A layer with a rule for ``vmap``: what the rule computes is what autograd differentiates."""

    @staticmethod
    def forward(layer: Layer, *tensors: Tensor) -> Tensor:
        """Compute for one client."""
        return layer(1, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
        """Keep what a gradient within ``vmap`` needs."""
        ctx.layer = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Differentiate the layer of one client: only an objective that takes gradients itself comes here."""
        pull = torch.func.vjp(partial(ctx.layer, 1), *ctx.saved_tensors)[1]
        return None, *pull(gradient)

    @staticmethod
    def vmap(info: Any, dims: Sequence[int | None], layer: Layer, *tensors: Tensor) -> tuple[Tensor, int]:  # noqa: ANN401
        """Compute for all clients: from the second axis of the outputs on they are each other's neighbours."""
        clients = info.batch_size
        inputs = _with_clients(tensors[0], dims[1], clients, at=1).flatten(1, 2)
        scales = [_with_clients(t, dim, clients, at=0).flatten() for t, dim in zip(tensors[1:], dims[2:], strict=True)]
        return layer(clients, inputs, *scales).unflatten(1, (clients, -1)), 1


def _with_clients(tensor: Tensor, dim: int | None, clients: int, at: int) -> Tensor:
    """Return a tensor with the clients at an axis; what all have in common is repeated."""
    if dim is not None:
        return tensor.movedim(dim, at)
    return tensor.unsqueeze(at).expand(*tensor.shape[:at], clients, *tensor.shape[at:])
