"""Rules of our own for ``vmap``, where torch's take a function apart too far, or not at all, or lose a gradient.

To a layer that treats channels singly or in groups, K clients are one with K times as many channels. So ``vmap``
vectorises convolutions already; GroupNorm and average pooling it takes apart, and copies what goes in and out. Here
each is one call of torch's own kernels, forwards and backwards.

Other functions, such as ``kl_div`` and ``lstm``, it cannot vectorise before autograd has taken them apart.

And where the backward pass comes after ``vmap``, code must not notice: whether a tensor has a gradient is what torch
would say without, and what has an effect backwards only, such as a hook, is refused rather than lost; so is the graph,
which is that of all clients.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import (
    avg_pool2d,
    embedding,
    group_norm,
    kl_div,
    margin_ranking_loss,
    triplet_margin_loss,
)
from torch.overrides import TorchFunctionMode

from fedkd.torch_internals import batch_size, batched, is_batched, unwrapped, with_batch_at

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


def _taken_apart(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
    """Compute as under autograd, which makes several operations of the function: for those ``vmap`` has rules."""
    return torch.func.vjp(lambda _: function(*arguments, **named), torch.zeros(()))[0]


# The arguments' names are torch's: a caller may use them.


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if not is_batched(input) or weight is None or bias is None:
        return group_norm(input, num_groups, weight, bias, eps)
    clients = batch_size(input)
    scale, shift = (with_batch_at(0, t, clients).flatten() for t in (weight, bias))
    return _unfolded(group_norm(_folded(input), clients * num_groups, scale, shift, eps), clients)


def _avg_pool2d(input: Tensor, *arguments: Any, **named: Any) -> Tensor:  # noqa: ANN401 - as torch's own
    if not is_batched(input) or input.dim() != _AXES:
        return avg_pool2d(input, *arguments, **named)
    return _unfolded(avg_pool2d(_folded(input), *arguments, **named), batch_size(input))


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if unwrapped(weight) is not weight:
        if max_norm is not None or scale_grad_by_freq:
            raise NotImplementedError("vmap has no rule for an embedding with max_norm or scale_grad_by_freq")
        if padding_idx is not None:  # its row is not trained
            still = torch.arange(len(weight), device=weight.device) == padding_idx % len(weight)
            weight, padding_idx = torch.where(still[:, None], weight.detach(), weight), None
    return embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)


def _embedding_of_torch(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,  # none
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    padding = None if padding_idx < 0 else padding_idx
    return _embedding(indices, weight, padding, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)


def _folded(inputs: Tensor) -> Tensor:
    """Return inputs ``(B, C, ...)`` of K clients as ``(B, K * C, ...)``."""
    return with_batch_at(1, inputs, batch_size(inputs)).flatten(1, 2)


def _unfolded(outputs: Tensor, clients: int) -> Tensor:
    """Return outputs ``(B, K * C, ...)`` as ``(B, C, ...)`` of K clients."""
    shape = outputs.shape
    return batched(outputs.reshape(shape[0], clients, -1, *shape[2:]), 1)


def _without_vmap(function: Callable[..., Any], tensor: Tensor, *arguments: Any) -> Any:  # noqa: ANN401
    """Return what torch says of the tensor without ``vmap``."""
    return function(unwrapped(tensor), *arguments)


def _sharing(function: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """Have equal elements share the gradient of the largest or smallest of all, as without ``vmap``."""

    def rule(input: Tensor, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        return function(input, *arguments, **named) if arguments or named else instead(input)

    return rule


def _median(function: Callable[..., Any], input: Tensor, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
    """Refuse the median of all elements, whose gradient equal ones share: no other function of torch does that."""
    if is_batched(input) and not (arguments or named):
        raise NotImplementedError(f"vmap has no rule for {function.__name__}() of a whole tensor")
    return function(input, *arguments, **named)


def _refused(function: Callable[..., Any], tensor: Tensor, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
    """Refuse what would be forgotten with the tensor that ``vmap`` has made."""
    if unwrapped(tensor) is not tensor:
        name = "grad_fn" if function == _GRAPH else function.__name__
        raise NotImplementedError(f"vmap has no rule for Tensor.{name}")
    return function(tensor, *arguments, **named)


_MEDIANS = (torch.median, Tensor.median, torch.nanmedian, Tensor.nanmedian)
_WHOLE = (kl_div, margin_ranking_loss, triplet_margin_loss, torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_SEEN = tuple(getattr(Tensor, name).__get__ for name in ("requires_grad", "is_leaf"))
_GRAPH = vars(torch._C.TensorBase)["grad_fn"].__get__
_BACKWARDS = (Tensor.register_hook, Tensor.retain_grad, Tensor.register_post_accumulate_grad_hook, _GRAPH)

_RULES: Mapping[Callable[..., Any], Callable[..., Any]] = {
    group_norm: _group_norm,
    avg_pool2d: _avg_pool2d,
    embedding: _embedding,
    torch.embedding: _embedding_of_torch,
    **{function: _sharing(function, torch.amax) for function in (torch.max, Tensor.max)},
    **{function: _sharing(function, torch.amin) for function in (torch.min, Tensor.min)},
    **{function: partial(_median, function) for function in _MEDIANS},
    **{function: partial(_taken_apart, function) for function in _WHOLE},
    **{function: partial(_without_vmap, function) for function in _SEEN},
    **{function: partial(_refused, function) for function in _BACKWARDS},
}
