"""Connectors that belong to one method: VID's regressor, ReviewKD's fusion, factor transfer's two networks.

They are trained by registration like any module, and draw no random numbers in their forward pass.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.losses import vid_start, vid_variance
from fedkd.models.connectors import Shape, resized

_LARGEST_FUSION = 512
_SLOPE = 0.1


@final
class VidRegressor(nn.Module):
    """The distribution of the teacher's features that a student predicts: a mean, and a variance for each channel.

    Three 1x1 convolutions with ReLUs between them give the mean, on maps :func:`resized` to the teacher's size.

    Args:
        student: shape of the student's maps, ``(C, H, W)``.
        teacher: shape of the teacher's, ``(D, H', W')``.
        variance: where the variances start, in squared units of the teacher's features.

    Source: Ahn et al. 2019 (arXiv:1904.05835); the authors' code starts from a variance of 5.
    """

    def __init__(self, student: Shape, teacher: Shape, *, variance: float = 5.0) -> None:
        super().__init__()
        channels, self.size = teacher[0], teacher[1:]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((student[0], channels, channels, channels)):
            layers += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU()]
        self.mean = nn.Sequential(*layers[:-1])
        self.raw_variance = nn.Parameter(torch.full((channels,), vid_start(variance)))

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean ``(N, D, H', W')`` and the variance ``(D,)`` for maps ``(N, C, H, W)``."""
        return self.mean(resized(maps, self.size)), vid_variance(self.raw_variance)


@final
class ReviewFusion(nn.Module):
    """The student's maps of several stages, each fused with those of the deeper ones, in the shapes of the teacher's.

    From the deepest stage on, a stage's maps and the fused ones so far are added with weights between 0 and 1 for each
    place, which a convolution finds.

    Args:
        students: shapes of the student's maps, from the first stage to the deepest, each ``(C, H, W)``.
        teachers: shapes to reach, one for each stage.
        width: channels while fusing; those of the student's deepest stage if None, 512 at most, as in the official
            code.

    Raises:
        ValueError: there is no stage, or the numbers of stages differ.

    Source: Chen et al. 2021 (arXiv:2104.09044), section 3.3.
    """

    def __init__(self, students: Sequence[Shape], teachers: Sequence[Shape], *, width: int | None = None) -> None:
        super().__init__()
        if not students or len(students) != len(teachers):
            raise ValueError(f"teachers: expected one shape for each of the student's, found {len(teachers)}.")
        width = min(_LARGEST_FUSION, students[-1][0]) if width is None else width
        self.sizes = [shape[1:] for shape in teachers]
        self.narrow = nn.ModuleList(_convolution(shape[0], width, 1) for shape in students)
        self.widen = nn.ModuleList(_convolution(width, shape[0], 3) for shape in teachers)
        self.weigh = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in students[:-1])  # the deepest has nothing to add

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the fused maps, in the teacher's shapes, of one map ``(N, C, H, W)`` for each stage."""
        if len(maps) != len(self.sizes):
            raise ValueError(f"maps: expected one for each of {len(self.sizes)} stages, found {len(maps)}.")
        fused: list[Tensor] = []
        deeper: Tensor | None = None
        for stage in reversed(range(len(maps))):
            own = self.narrow[stage](maps[stage])
            if deeper is not None:
                deeper = F.interpolate(deeper, own.shape[-2:], mode="nearest")
                weights = self.weigh[stage](torch.cat([own, deeper], dim=1)).sigmoid()
                own = own * weights[:, :1] + deeper * weights[:, 1:]
            deeper = F.interpolate(own, self.sizes[stage], mode="nearest")
            fused.insert(0, self.widen[stage](deeper))
        return fused


@final
class Paraphraser(nn.Module):
    """An autoencoder of the teacher's maps, trained beforehand by :func:`fedkd.losses.hint` on its own input.

    Args:
        channels: channels of the teacher's maps.
        rate: the paper's ``k``: factors have this share of the channels.

    Source: Kim et al. 2018 (arXiv:1802.04977): three convolutions, three transposed ones, leaky ReLUs of slope 0.1. The
    authors' program trains it by the mean *absolute* difference.
    """

    def __init__(self, channels: int, *, rate: float = 0.5) -> None:
        super().__init__()
        factors = max(1, round(rate * channels))
        self.factor = _three(nn.Conv2d, (channels, channels, factors, factors))
        self.restore = _three(nn.ConvTranspose2d, (factors, factors, channels, channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Return what becomes of maps ``(N, C, H, W)``; their factors ``(N, rate * C, H, W)`` are ``factor(maps)``."""
        restored: Tensor = self.restore(self.factor(maps))
        return restored


def translator(channels: int, factors: int) -> nn.Module:
    """Return the network that makes the student's factors: three convolutions, as in the :class:`Paraphraser`.

    Args:
        channels: channels of the student's maps.
        factors: channels of the teacher's factors.
    """
    return _three(nn.Conv2d, (channels, channels, factors, factors))


def _three(kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], channels: Sequence[int]) -> nn.Sequential:
    """Return 3x3 convolutions that keep the size, each followed by a leaky ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [kind(inputs, outputs, 3, padding=1), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)


def _convolution(inputs: int, outputs: int, kernel_size: int) -> nn.Sequential:
    """Return a convolution that keeps the size, and BatchNorm, started as in ReviewKD's official code."""
    convolution = nn.Conv2d(inputs, outputs, kernel_size, padding="same", bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))
