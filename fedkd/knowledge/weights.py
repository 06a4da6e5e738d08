"""Weights of models: of a student, and of a generator."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError, expect, expect_names
from fedkd.knowledge.base import Contract, _Named


@final
@dataclass(frozen=True)
class Weights(_Named):
    """Parameters and buffers of one model.

    Attributes:
        tensors: by parameter name.
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the weights from their flat form."""
        return cls(dict(tensors))

    def check(self, contract: Contract) -> None:
        """Expect the names, shapes and dtypes of the model that travels, all finite."""
        expect_names("weights", set(contract.weights), set(self.tensors))
        for name, tensor in self.tensors.items():
            expect(name, tensor, *contract.weights[name])
            if name.endswith("running_var") and (tensor < 0).any():
                raise KnowledgeError(f"{name}: expected variances of 0 or more, found {float(tensor.min())}")


@final
@dataclass(frozen=True)
class Generator(_Named):
    """Parameters of a generator that makes samples or features, shared by the server.

    Attributes:
        tensors: by parameter name.
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the generator's weights from their flat form."""
        return cls(dict(tensors))

    def check(self, contract: Contract) -> None:
        """Expect finite tensors."""
        for name, tensor in self.tensors.items():
            expect(name, tensor, tuple(tensor.shape), tensor.dtype)
