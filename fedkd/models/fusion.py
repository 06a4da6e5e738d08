"""An architecture for composite views such as ``acc+gyro``: a branch for each part, joined at the features."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedkd.models.shapes import InputShape, Shape, parts
from fedkd.models.signal import signal_cnn
from fedkd.models.spectrogram import spectrogram_cnn
from fedkd.models.vector import vector

# By the number of axes of a part. A shape does not tell a spectrogram from an image; what suits the first suits both.
_BRANCHES: Mapping[int, Callable[[InputShape, int], nn.Module]] = {1: vector, 2: signal_cnn, 3: spectrogram_cnn}


def fusion(input_shape: InputShape, feature_width: int) -> nn.Module:
    """A branch for each part (spectrogram-cnn for images too, signal-cnn, vector), joined; takes composite views."""
    shapes = [part or (1,) for part in parts(input_shape)]  # a part may be one number
    if any(len(shape) not in _BRANCHES for shape in shapes):
        raise ValueError("parts that are images (channels, height, width), signals (channels, length) or vectors")
    branches = [_BRANCHES[len(shape)](shape, feature_width) for shape in shapes]
    return nn.Sequential(Branches(shapes, branches), nn.Linear(len(shapes) * feature_width, feature_width), nn.ReLU())


class Branches(nn.Module):
    """Gives each part of a sample to its own module, and joins what comes out."""

    def __init__(self, shapes: Sequence[Shape], branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.shapes = list(shapes)
        self.branches = nn.ModuleList(branches)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map samples with their parts flattened and joined, ``(N, D)``, to ``(N, branches * d)``."""
        pieces = inputs.flatten(1).split([math.prod(shape) for shape in self.shapes], dim=1)
        features = [
            branch(piece.unflatten(1, shape))
            for branch, piece, shape in zip(self.branches, pieces, self.shapes, strict=True)
        ]
        return torch.cat(features, dim=1)
