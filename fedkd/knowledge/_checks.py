"""What payloads are checked for, with one text for each mistake."""

import torch
from torch import Tensor

from fedkd.checks import all_finite


class KnowledgeError(ValueError):
    """A payload that breaks the round's contract; the message says what was expected and what was found."""


def expect_names(what: str, expected: set[str], found: set[str]) -> None:
    """Expect these names and no others."""
    if expected != found:
        missing, extra = sorted(expected - found), sorted(found - expected)
        raise KnowledgeError(f"{what}: expected the fields {sorted(expected)}; missing {missing}, unexpected {extra}")


def expect_tensor(name: str, tensor: object) -> None:
    """Expect a tensor."""
    if not isinstance(tensor, Tensor):
        raise KnowledgeError(f"{name}: expected a tensor, found {tensor if tensor is None else type(tensor).__name__}")


def expect(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Expect a layout, and finite values."""
    expect_layout(name, tensor, shape, dtype)
    expect_finite(name, tensor)


def expect_layout(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Expect a shape and a type."""
    expect_tensor(name, tensor)
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise KnowledgeError(
            f"{name}: expected {dtype} of shape {shape}, found {tensor.dtype} of shape {tuple(tensor.shape)}"
        )


def expect_finite(name: str, tensor: Tensor) -> None:
    """Expect neither NaN nor infinity."""
    if not all_finite(tensor):
        raise KnowledgeError(
            f"{name}: expected finite values, found {int((~torch.isfinite(tensor)).sum())} that are not"
        )


def expect_float(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Expect a shape, floating point, and finite values."""
    expect_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise KnowledgeError(f"{name}: expected floating point, found {tensor.dtype}")
    expect(name, tensor, shape, tensor.dtype)


def expect_integer(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Expect a shape, and int64."""
    expect(name, tensor, shape, torch.int64)


def expect_bool(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Expect a shape, and bool."""
    expect(name, tensor, shape, torch.bool)


def expect_public_ids(ids: Tensor, public_ids: Tensor) -> None:
    """Expect the ids of the round's public subset, in its order."""
    expect_integer("ids", ids, (len(public_ids),))
    if not torch.equal(ids, public_ids):
        raise KnowledgeError("ids: expected the ids of the round's public subset in its order, found others")
