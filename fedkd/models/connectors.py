"""From a student's features to the shape of a teacher's: channels, places, and tokens against maps.

A connector is trained with the student and dropped after the distillation. None draws random numbers in its forward
pass, so that it can be trained in a cohort. Shapes are those of one sample, ``(C, H, W)``. What single methods need
besides is in ``method_connectors``.
"""

import math
from collections.abc import Sequence
from typing import Literal, final

from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.numerics import pooled

Shape = tuple[int, int, int]
Norm = Literal["batch", "group", "none"]


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps to another size: sides that shrink are averaged, sides that grow repeat their nearest values.

    Args:
        maps: shape ``(N, C, H, W)``.
        size: height and width to reach.

    Returns:
        Maps of shape ``(N, C, *size)``.

    Example:
        >>> import torch
        >>> resized(torch.tensor([[[[1.0, 3.0]]]]), (2, 1)).tolist()
        [[[[2.0], [2.0]]]]
    """
    height, width = maps.shape[-2:]
    maps = pooled(maps, (min(height, size[0]), min(width, size[1])))
    repeated: Tensor = F.interpolate(maps, size, mode="nearest")
    return repeated


def tokens_to_map(tokens: Tensor, size: tuple[int, int], *, skip: int = 0) -> Tensor:
    """Lay the patch tokens of a transformer out as a map, row by row.

    Args:
        tokens: shape ``(N, skip + H * W, d)``.
        size: ``(H, W)`` of the grid of patches.
        skip: leading tokens that belong to no patch, such as the class token.

    Returns:
        The map, shape ``(N, d, H, W)``.

    Raises:
        ValueError: the number of tokens is not that of the grid.
    """
    expected = skip + math.prod(size)
    if tokens.ndim != len("NLd") or tokens.shape[1] != expected:
        raise ValueError(f"tokens: expected shape (N, {expected}, d), found {tuple(tokens.shape)}.")
    laid_out: Tensor = tokens[:, skip:].transpose(1, 2).unflatten(2, size)
    return laid_out


def map_to_tokens(maps: Tensor) -> Tensor:
    """Return the places of maps ``(N, d, H, W)``, row by row, as tokens ``(N, H * W, d)``."""
    return maps.flatten(2).transpose(1, 2)


@final
class Connector(nn.Module):
    """A convolution to the teacher's channels, normalised, then :func:`resized` to the teacher's size.

    With its defaults it is the connector of OFD, whose official code starts it likewise.

    Args:
        student: shape of the student's maps, ``(C, H, W)``.
        teacher: shape to reach, ``(D, H', W')``.
        kernel_size: odd side of the convolution's kernel.
        norm: what follows the convolution: BatchNorm, GroupNorm with a single group, or nothing.
        relu: whether a ReLU comes last; the teacher's negative values are then out of reach.

    Raises:
        ValueError: a shape is not that of a map, the kernel's side is even, or there is no such norm.
    """

    def __init__(
        self, student: Shape, teacher: Shape, *, kernel_size: int = 1, norm: Norm = "batch", relu: bool = False
    ) -> None:
        super().__init__()
        _expect_map("student", student)
        _expect_map("teacher", teacher)
        if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number of 1 or more, found {kernel_size!r}.")
        channels = teacher[0]
        convolution = nn.Conv2d(student[0], channels, kernel_size, padding="same", bias=norm == "none")
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
        self.size = teacher[1:]
        self.layers = nn.Sequential(convolution, *_norm(norm, channels), *([nn.ReLU()] if relu else []))

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, D, H', W')``."""
        return resized(self.layers(maps), self.size)


def regressor(student: Shape, teacher: Shape, *, relu: bool = True) -> nn.Module:
    """Return the regressor of FitNets as public code has it: one convolution aligns channels and size, then BatchNorm.

    A side that halves is convolved with stride 2, one that doubles is convolved transposed, and one that shrinks by
    less has a kernel that leaves the right size. Other sizes are left to a :class:`Connector`.

    Args:
        student: shape of the student's maps, ``(C, H, W)``.
        teacher: shape to reach, ``(D, H', W')``.
        relu: whether a ReLU comes last, as in that code: teach features that are not negative then.

    Raises:
        ValueError: a shape is not that of a map.
    """
    _expect_map("student", student)
    _expect_map("teacher", teacher)
    (inputs, *before), (outputs, *after) = student, teacher
    if before == [2 * side for side in after]:
        convolution: nn.Module = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    elif [2 * side for side in before] == after:
        convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    elif all(old >= new for old, new in zip(before, after, strict=True)):
        height, width = (1 + old - new for old, new in zip(before, after, strict=True))
        convolution = nn.Conv2d(inputs, outputs, (height, width))
    else:
        return Connector(student, teacher, relu=relu)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else []))


def embedding(shape: tuple[int, ...], width: int = 128) -> nn.Module:
    """Return a linear layer on flattened features, as CRD and correlation congruence put on either side.

    Args:
        shape: shape of one sample's features.
        width: number of features to make of them; 128 in both papers' code.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width))


def _expect_map(name: str, shape: Sequence[int]) -> None:
    """Refuse what is not the shape of one sample's map."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if len(sizes) != len("CHW") or not all(isinstance(size, int) and size > 0 for size in sizes):
        hint = "; leave the number of samples out" if len(sizes) == len("NCHW") else ""
        raise ValueError(f"{name}: expected the shape (C, H, W) of one sample's map, found {shape}{hint}.")


def _norm(kind: Norm, channels: int) -> list[nn.Module]:
    norms: dict[Norm, list[nn.Module]] = {
        "batch": [nn.BatchNorm2d(channels)],
        "group": [nn.GroupNorm(1, channels)],
        "none": [],
    }
    if kind not in norms:
        raise ValueError(f"norm: expected one of {', '.join(map(repr, norms))}, found {kind!r}.")
    return norms[kind]
