"""An architecture for spectrograms ``(channels, bands, frames)``; see ``image`` for the rules."""

from torch import nn

from fedkd.models.image import convolutional, group_norm
from fedkd.models.shapes import InputShape


def spectrogram_cnn(input_shape: InputShape, feature_width: int) -> nn.Module:
    """Three 3x3 convolutions (16, 32, 64 channels) with GroupNorm and maximum pooling; takes log-mel spectrograms.

    The maximum keeps a short burst in one band that an average would drown in the silence around it; what is left is a
    grid of at most four parts of the pitch by four of the time, so that the order of sounds counts.
    """
    return convolutional(input_shape, feature_width, channels=(16, 32, 64), norm=group_norm, pool=nn.MaxPool2d)
