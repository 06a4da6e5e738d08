"""Architectures for signals ``(channels, length)``: sensors, audio, pen strokes; see ``image`` for the rules."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fedkd.models.image import group_norm
from fedkd.models.shapes import InputShape, of_rank

_SIGNAL_AXES, _STROKE_AXES = 2, 2  # channels and length; x and y
_SHORTEST = 2
_LONGEST = 256  # the first convolution strides so that no more is left
_KERNEL = 5
_STAGES = (32, 64, 64)
_GRID = 4
_FAST, _SLOW = 64, 8  # lengths from which pooling takes four values together, or two


def signal_cnn(input_shape: InputShape, feature_width: int) -> nn.Module:
    """Four 1-D convolutions (16, 32, 64, 64 channels) with GroupNorm, ReLU features; takes signals of any length."""
    channels, length = _split(input_shape)
    stride = math.ceil(length / _LONGEST)
    kernel = max(_KERNEL, 2 * stride + 1)
    layers: list[nn.Module] = [nn.Conv1d(channels, 16, kernel, stride=stride, padding=kernel // 2)]
    layers += [group_norm(16), nn.ReLU()]
    inputs, length = 16, math.ceil(length / stride)
    for outputs in _STAGES:
        layers += [nn.Conv1d(inputs, outputs, _KERNEL, padding=_KERNEL // 2), group_norm(outputs), nn.ReLU()]
        length = _pool(layers, nn.MaxPool1d, length, 4 if length >= _FAST else 2 if length >= _SLOW else 1)
        inputs = outputs
    length = _pool(layers, nn.AvgPool1d, length, math.ceil(length / _GRID))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * length, feature_width), nn.ReLU())


def stroke(input_shape: InputShape, feature_width: int) -> nn.Module:
    """Two 1-D convolutions (32, 64 channels) over points and steps of a pen, wherever and however large it wrote."""
    channels, points = _split(input_shape)
    if channels != _STROKE_AXES:
        raise ValueError(f"pen strokes (2, points) of at least {_SHORTEST} points")
    layers: list[nn.Module] = [PointsAndSteps()]
    for inputs, outputs in ((2 * _STROKE_AXES, 32), (32, 64)):
        layers += [nn.Conv1d(inputs, outputs, kernel_size=3, padding=1), group_norm(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * points, feature_width), nn.ReLU())


class PointsAndSteps(nn.Module):
    """Puts a stroke's centre at 0 and its root mean square at 1, and adds the steps from point to point."""

    def forward(self, strokes: Tensor) -> Tensor:
        """Map ``(N, 2, points)`` to ``(N, 4, points)``; the step behind the last point is 0."""
        centred = strokes - strokes.mean(dim=-1, keepdim=True)
        size = centred.square().mean(dim=(-2, -1), keepdim=True).add(1e-6).sqrt()  # a single dot has none
        points = centred / size
        return torch.cat([points, pad(points.diff(dim=-1), (0, 1))], dim=-2)


def _split(input_shape: InputShape) -> tuple[int, int]:
    shape = of_rank(input_shape, _SIGNAL_AXES)
    if shape is None or shape[1] < _SHORTEST:
        raise ValueError(f"signals (channels, length) of at least {_SHORTEST} values")
    return shape[0], shape[1]


def _pool(layers: list[nn.Module], kind: type[nn.MaxPool1d] | type[nn.AvgPool1d], length: int, kernel: int) -> int:
    """Append a pooling if it changes anything, and return the length after it."""
    if kernel > 1:
        layers.append(kind(kernel, ceil_mode=True))
    return math.ceil(length / kernel)
