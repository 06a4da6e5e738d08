"""What torch does not make public: how ``vmap`` marks the axis of its batch, and whether values can be looked at.

Written against torch 2.15.
"""

from torch import Tensor
from torch._C import _functorch, _len_torch_dispatch_stack


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor is one of the innermost ``vmap``'s, and no gradient is being taken within it."""
    innermost = _functorch.maybe_current_level()
    return bool(_functorch.is_batchedtensor(tensor)) and _functorch.maybe_get_level(tensor) == innermost


def unwrapped(tensor: Tensor) -> Tensor:
    """Return the tensor that every ``vmap`` around has hidden an axis of, with all of them."""
    while _functorch.is_batchedtensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def times_written(tensor: Tensor) -> int:
    """Return how often a tensor, or what every ``vmap`` around has made it of, was changed in place."""
    return unwrapped(tensor)._version


def batch_size(tensor: Tensor) -> int:
    """Return the length of a batched tensor's hidden axis."""
    return int(_functorch.get_unwrapped(tensor).shape[_functorch.maybe_get_bdim(tensor)])


def with_batch_at(axis: int, tensor: Tensor, size: int) -> Tensor:
    """Return a tensor with the hidden axis shown as this one; without one, the tensor is repeated, and not copied."""
    if is_batched(tensor):
        return _functorch.get_unwrapped(tensor).movedim(_functorch.maybe_get_bdim(tensor), axis)
    return tensor.unsqueeze(axis).expand(*tensor.shape[:axis], size, *tensor.shape[axis:])


def batched(tensor: Tensor, axis: int) -> Tensor:
    """Return a tensor with this axis hidden, as the innermost ``vmap`` wants it."""
    level = _functorch.maybe_current_level()
    assert level is not None  # noqa: S101 - said to the type checker
    return _functorch._add_batch_dim(tensor, axis, level)


def is_transformed() -> bool:
    """Whether a function is being vectorised, differentiated or recorded, so that values cannot be looked at."""
    return _functorch.maybe_current_level() is not None or bool(_len_torch_dispatch_stack())
