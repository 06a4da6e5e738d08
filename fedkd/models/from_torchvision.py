"""Classifiers of torchvision, untrained, as the feature part of a classifier; see ``image`` for our own.

Two things change: the first convolution takes as many channels as the data have, and in place of the classifier stands
the feature layer. All else is torchvision's, so images shrink 32-fold on the way, and small ones to a single pixel.
BatchNorm then needs batches of two or more samples to train on.

Only what trains on such images within a few epochs, in cohorts and alone, is here. On 28x28 digits, MobileNetV3 was
still at chance level when evaluated, as its BatchNorm averages over hundreds of steps, and so was SqueezeNet, which
needs 17x17; EfficientNet draws random numbers for whole blocks, which keeps it out of a cohort.
"""

from torch import nn

from fedkd.models.image import split_image
from fedkd.models.shapes import InputShape

_SMALLEST_SIDE = 8  # below, even the first layers would see little but padding


def resnet18(input_shape: InputShape, feature_width: int) -> nn.Module:
    """ResNet-18 of torchvision, untrained: 11 million weights, BatchNorm, ReLU features; takes images from 8x8."""
    return _adapted("resnet18", input_shape, feature_width)


def shufflenet_v2_x0_5(input_shape: InputShape, feature_width: int) -> nn.Module:
    """ShuffleNetV2 x0.5 of torchvision, untrained: 0.4 million weights, BatchNorm, ReLU features; images from 8x8."""
    return _adapted("shufflenet_v2_x0_5", input_shape, feature_width)


def _adapted(name: str, input_shape: InputShape, feature_width: int) -> nn.Module:
    """Build a classifier by its torchvision name, with our channels in front and our features at its end."""
    from torchvision.models import get_model

    channels, _, _ = split_image(input_shape, _SMALLEST_SIDE)
    network: nn.Module = get_model(name, weights=None, num_classes=feature_width)
    first = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
    if channels != first.in_channels:
        first.in_channels = channels
        first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, channels, *first.kernel_size))
        first.reset_parameters()
    return nn.Sequential(network, nn.ReLU())
