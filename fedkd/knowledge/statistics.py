"""Statistics of layers, from which methods without data rebuild what a model was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError, expect_float
from fedkd.knowledge.base import Contract, _Named

_FIELDS = ("mean", "variance", "covariance")


@final
@dataclass(frozen=True)
class Statistics(_Named):
    """What a model's layers look like on data that nobody else sees: moments of their activations.

    Attributes:
        tensors: for each layer ``<layer>.mean``, shape ``(d,)``, and beside it ``<layer>.variance``, shape ``(d,)``
            (those of BatchNorm, for one), or ``<layer>.covariance``, shape ``(d, d)``, or both, or neither.
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the statistics from their flat form."""
        return cls(dict(tensors))

    def check(self, contract: Contract) -> None:
        """Expect a finite mean for every layer, spreads of the same width, and no variance below 0."""
        for name, tensor in self.tensors.items():
            layer, _, field = name.rpartition(".")
            mean = self.tensors.get(f"{layer}.mean")
            if not layer or field not in _FIELDS or mean is None:
                expected = f"names '<layer>.<field>' with a field of {_FIELDS}, and a mean for every layer"
                raise KnowledgeError(f"statistics: expected {expected}, found {name!r}")
            width = mean.numel()
            expect_float(name, tensor, (width, width) if field == "covariance" else (width,))
            if field == "variance" and (tensor < 0).any():
                raise KnowledgeError(f"{name}: expected variances of 0 or more, found {float(tensor.min())}")
