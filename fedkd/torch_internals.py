"""All contact with parts of torch that are not public, in one file: how ``vmap`` marks the axis of its batch.

Written against torch 2.15.
"""

from torch import Tensor
from torch._C import _functorch


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor is one that ``vmap`` has given to a function, and no gradient is being taken within it."""
    return bool(_functorch.is_batchedtensor(tensor))


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
    """Whether a function is being vectorised or differentiated, so that values cannot be looked at."""
    return _functorch.maybe_current_level() is not None
