"""An architecture for vectors of features in whatever units; see ``image`` for the rules."""

import torch
from torch import Tensor, nn

from fedkd.models.shapes import InputShape, of_rank

_HIDDEN = 128
_MANY = 16  # features that can spare their mean and size, which LayerNorm takes away; a lone one would be lost


def vector(input_shape: InputShape, feature_width: int) -> nn.Module:
    """Logarithm that tames large units, one hidden layer of 128, LayerNorm, ReLU features; takes vectors."""
    shape = of_rank(input_shape, 1)
    if shape is None:
        raise ValueError("vectors (features,)")
    layers: list[nn.Module] = [SignedLogarithm()]
    if shape[0] >= _MANY:
        layers.append(nn.LayerNorm(shape[0]))
    for inputs, outputs in ((shape[0], _HIDDEN), (_HIDDEN, feature_width)):
        layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class SignedLogarithm(nn.Module):
    """``sign(x) log(1 + |x|)``: leaves small values, shrinks large ones, keeps signs; nothing is fitted to data."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Map values of any shape."""
        return torch.sign(inputs) * torch.log1p(inputs.abs())
