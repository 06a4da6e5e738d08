"""Architectures for small images: the feature part of a classifier.

Each is a function ``(input_shape, feature_width) -> nn.Module`` whose module maps ``(N, *input_shape)`` to
``(N, feature_width)``; the first line of its docstring is what ``fedkd list models`` prints. None draws random numbers
in its forward pass, so a client's result never depends on who else is in its cohort.
"""

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import relu

from fedkd.models import shapes
from fedkd.models.shapes import InputShape

Pooling = type[nn.AvgPool2d] | type[nn.MaxPool2d]

_IMAGE_AXES = 3  # channels, height, width
_SMALLEST_SIDE = 2
_LARGEST_GRID = 4
_NORM_GROUPS = 4


def split_image(input_shape: InputShape, smallest_side: int = _SMALLEST_SIDE) -> tuple[int, int, int]:
    """Split an image's shape into channels, height and width.

    Raises:
        ValueError: it is not the shape of an image, or the image is too small.
    """
    shape = shapes.of_rank(input_shape, _IMAGE_AXES)
    if shape is None or min(shape[1:]) < smallest_side:
        raise ValueError(f"images (channels, height, width) of at least {smallest_side}x{smallest_side}")
    return shape[0], shape[1], shape[2]


def linear(input_shape: InputShape, feature_width: int) -> nn.Module:
    """Linear features of the flattened input: with the head, a linear classifier; takes any shape."""
    return nn.Sequential(nn.Flatten(), nn.Linear(shapes.width(input_shape), feature_width))


def mlp(input_shape: InputShape, feature_width: int) -> nn.Module:
    """Flattened input, one hidden layer of 128, ReLU features; takes any shape."""
    return _perceptron(input_shape, feature_width, hidden=(128,))


def mlp_deep(input_shape: InputShape, feature_width: int) -> nn.Module:
    """Flattened input, two hidden layers of 128, ReLU features; takes any shape."""
    return _perceptron(input_shape, feature_width, hidden=(128, 128))


def cnn(input_shape: InputShape, feature_width: int) -> nn.Module:
    """Two 3x3 convolutions (16, 32 channels) with GroupNorm, ReLU features; takes images."""
    return convolutional(input_shape, feature_width, channels=(16, 32), norm=group_norm)


def cnn_wide(input_shape: InputShape, feature_width: int) -> nn.Module:
    """Three 3x3 convolutions (32, 64, 64 channels) with GroupNorm, ReLU features; takes images."""
    return convolutional(input_shape, feature_width, channels=(32, 64, 64), norm=group_norm)


def cnn_deep(input_shape: InputShape, feature_width: int) -> nn.Module:
    """Six 3x3 convolutions (two each of 16, 32, 64 channels) with GroupNorm, ReLU features; takes images."""
    return convolutional(input_shape, feature_width, channels=(16, 32, 64), norm=group_norm, depth=2)


def cnn_bn(input_shape: InputShape, feature_width: int) -> nn.Module:
    """As cnn, with BatchNorm in place of GroupNorm; takes images."""
    return convolutional(input_shape, feature_width, channels=(16, 32), norm=nn.BatchNorm2d)


def resnet_gn(input_shape: InputShape, feature_width: int) -> nn.Module:
    """Small ResNet, three residual blocks (16, 32, 64 channels) with GroupNorm, ReLU features; takes images."""
    channels, height, width = split_image(input_shape)
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, kernel_size=3, padding=1), group_norm(16), nn.ReLU()]
    inputs, stride = 16, (1, 1)
    for outputs in (16, 32, 64):
        layers.append(_Residual(inputs, outputs, stride))
        height, width = math.ceil(height / stride[0]), math.ceil(width / stride[1])
        inputs, stride = outputs, (_halving(height), _halving(width))
    return _with_features(layers, (inputs, height, width), feature_width)


class _Residual(nn.Module):
    """Two 3x3 convolutions, added to their input; where sizes change, a 1x1 convolution makes the input fit."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1),
            group_norm(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, kernel_size=3, padding=1),
            group_norm(outputs),
        )
        fits = inputs == outputs and stride == (1, 1)
        shortcut = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride)
        self.shortcut = nn.Identity() if fits else nn.Sequential(shortcut, group_norm(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``, rounded up."""
        return relu(self.body(inputs) + self.shortcut(inputs))


def _perceptron(input_shape: InputShape, feature_width: int, hidden: tuple[int, ...]) -> nn.Module:
    """Fully connected layers, each followed by a ReLU."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = shapes.width(input_shape)
    for outputs in (*hidden, feature_width):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers)


def convolutional(
    input_shape: InputShape,
    feature_width: int,
    *,
    channels: tuple[int, ...],
    norm: Callable[[int], nn.Module],
    depth: int = 1,
    pool: Pooling = nn.AvgPool2d,
) -> nn.Module:
    """Stages of ``depth`` convolutions that halve large enough sides by ``pool``, then features."""
    inputs, height, width = split_image(input_shape)
    layers: list[nn.Module] = []
    for outputs in channels:
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), norm(outputs), nn.ReLU()]
            inputs = outputs
        height, width = _pool(layers, (height, width), kernel=(_halving(height), _halving(width)), pool=pool)
    return _with_features(layers, (inputs, height, width), feature_width)


def _with_features(layers: list[nn.Module], shape: tuple[int, int, int], feature_width: int) -> nn.Module:
    """Put a small grid of averages and the feature layer behind layers whose output has this shape."""
    channels, height, width = shape
    kernel = math.ceil(height / _LARGEST_GRID), math.ceil(width / _LARGEST_GRID)
    height, width = _pool(layers, (height, width), kernel=kernel)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, feature_width), nn.ReLU())


def _halving(side: int) -> int:
    """Kernel that halves a side unless it is already small."""
    return 2 if side >= _LARGEST_GRID else 1


def _pool(
    layers: list[nn.Module], size: tuple[int, int], kernel: tuple[int, int], pool: Pooling = nn.AvgPool2d
) -> tuple[int, int]:
    """Append a pooling to ``layers`` if it changes anything, and return the size after it.

    Plain pooling with a computed kernel, as the gradient of PyTorch's adaptive pooling is not deterministic on CUDA.
    """
    if kernel != (1, 1):
        layers.append(pool(kernel, ceil_mode=True))
    return math.ceil(size[0] / kernel[0]), math.ceil(size[1] / kernel[1])


def group_norm(channels: int) -> nn.Module:
    """Group normalisation: no statistics over the batch, so nothing of other samples leaks into a prediction."""
    return nn.GroupNorm(_NORM_GROUPS, channels)
