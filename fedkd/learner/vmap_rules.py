"""Rules of our own for ``vmap``, where torch's take a function apart too far, or not at all.

To a layer that treats channels singly or in groups, K clients are one with K times as many channels. So ``vmap``
vectorises convolutions already; GroupNorm and average pooling it takes apart, and copies what goes in and out. Here
each is one call of torch's own kernels, forwards and backwards.

Other functions, such as ``kl_div``, it does not take apart before autograd does, and computes client after client.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, group_norm, kl_div, margin_ranking_loss, triplet_margin_loss
from torch.overrides import TorchFunctionMode

from fedkd.torch_internals import batch_size, batched, is_batched, with_batch_at

_AXES = 4  # batch, channels, height, width


@contextmanager
def own_rules() -> Iterator[None]:
    """Follow these rules within ``vmap``."""
    with _Rules():
        yield


class _Rules(TorchFunctionMode):
    """Takes over some functions of torch."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: object,
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        rule: Callable[..., Any] = _RULES.get(function, function)
        return rule(*arguments, **named) if named else rule(*arguments)


def _taken_apart(function: Callable[..., Tensor], *arguments: Any, **named: Any) -> Tensor:  # noqa: ANN401
    """Compute as under autograd, which makes several operations of the function: for those ``vmap`` has rules."""
    outputs: Tensor = torch.func.vjp(lambda _: function(*arguments, **named), torch.zeros(()))[0]
    return outputs


def _group_norm(
    inputs: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    if not is_batched(inputs) or weight is None or bias is None:
        return group_norm(inputs, num_groups, weight, bias, eps)
    clients = batch_size(inputs)
    scale, shift = (with_batch_at(0, t, clients).flatten() for t in (weight, bias))
    return _unfolded(group_norm(_folded(inputs), clients * num_groups, scale, shift, eps), clients)


def _avg_pool2d(inputs: Tensor, *arguments: Any, **named: Any) -> Tensor:  # noqa: ANN401 - as torch's own
    if not is_batched(inputs) or inputs.dim() != _AXES:
        return avg_pool2d(inputs, *arguments, **named)
    return _unfolded(avg_pool2d(_folded(inputs), *arguments, **named), batch_size(inputs))


def _folded(inputs: Tensor) -> Tensor:
    """Return inputs ``(B, C, ...)`` of K clients as ``(B, K * C, ...)``."""
    return with_batch_at(1, inputs, batch_size(inputs)).flatten(1, 2)


def _unfolded(outputs: Tensor, clients: int) -> Tensor:
    """Return outputs ``(B, K * C, ...)`` as ``(B, C, ...)`` of K clients."""
    shape = outputs.shape
    return batched(outputs.reshape(shape[0], clients, -1, *shape[2:]), 1)


_RULES: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
    group_norm: _group_norm,
    avg_pool2d: _avg_pool2d,
    **{function: partial(_taken_apart, function) for function in (kl_div, margin_ranking_loss, triplet_margin_loss)},
}
