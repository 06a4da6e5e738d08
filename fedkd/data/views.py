"""Views by name: ``image`` is a view as the data set has it, ``image@16`` the same images at 16x16."""

import re

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fedkd.data.sources import DataSet
from fedkd.errors import UserError, unknown

_NAME = re.compile(r"(?P<base>[^@]+)(?:@(?P<size>[1-9][0-9]*))?")
_IMAGE_RANK = 4  # (N, channels, height, width)
_CHUNK = 4096  # images resized at a time, which bounds the memory for intermediate results

# Every client of a process may ask for the same view: it is resized once, and the copies are shared.
_resized: dict[tuple[str, str, int], Tensor] = {}


def parse(name: str) -> tuple[str, int | None]:
    """Split a view name into the base view and the size in pixels, None if there is no size.

    Raises:
        UserError: the name is not of the form ``base`` or ``base@size``.

    Example:
        >>> parse("image@16"), parse("image")
        (('image', 16), ('image', None))
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"view {name!r}: expected 'base' or 'base@size' with a size of 1 or more, such as 'image@16'.")
    return match["base"], int(match["size"]) if match["size"] else None


def view(dataset: DataSet, name: str) -> Tensor:
    """Return one view of all samples, float32, shape ``(N, ...)``.

    A size asks for square images of that many pixels, by an antialiased bilinear filter: each pixel then covers the
    area that a camera of that resolution would have seen. The tensor is shared within the process: do not write to it.

    Args:
        dataset: the samples.
        name: ``base`` or ``base@size``.

    Returns:
        The base view as it is, or images of shape ``(N, channels, size, size)``.

    Raises:
        UserError: the base view does not exist, holds no images, or is smaller than the size.
    """
    base, size = parse(name)
    if base not in dataset.views:
        raise unknown("view", base, dataset.views, where=f"data set {dataset.name!r}")
    original = dataset.views[base]
    if size is None:
        return original
    _check_size(name, size, original)
    key = (dataset.digest, base, size)
    if key not in _resized:
        _resized[key] = _resize(original, size)
    return _resized[key]


def parts(name: str) -> tuple[str, ...]:
    """Split the name of a view into the names of the views that it joins, such as ``image+audio``."""
    return tuple(name.split("+"))


def present(dataset: DataSet, name: str) -> Tensor:
    """Return which samples have a view, bool, shape ``(N,)``: of several joined, all of them."""
    there = torch.ones(len(dataset), dtype=torch.bool)
    for part in parts(name):
        known = getattr(dataset, "present", {}).get(parse(part)[0])
        there = there if known is None else there & known
    return there


def shape(dataset: DataSet, name: str) -> tuple[int, ...]:
    """Return the shape of one sample in a view."""
    return tuple(view(dataset, name).shape[1:])


def _check_size(name: str, size: int, original: Tensor) -> None:
    shape = tuple(original.shape)
    if len(shape) != _IMAGE_RANK:
        raise UserError(f"view {name!r}: expected images (N, C, H, W) to resize, found {shape}; drop the size.")
    largest = min(shape[2:])
    if size > largest:
        raise UserError(f"view {name!r}: expected a size of at most {largest}, the original's, found {size}; lower it.")


def _resize(images: Tensor, size: int) -> Tensor:
    chunks = torch.split(images, _CHUNK)
    return torch.cat([interpolate(chunk, size=(size, size), mode="bilinear", antialias=True) for chunk in chunks])
