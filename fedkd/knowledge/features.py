"""Features: per class, and of public samples."""

from dataclasses import dataclass
from typing import ClassVar, Self, final

from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError, expect_float, expect_integer, expect_public_ids
from fedkd.knowledge._class_means import class_means
from fedkd.knowledge.base import Contract, Meaning, _Fields


@final
@dataclass(frozen=True)
class Prototypes(_Fields):
    """Mean feature per class.

    Attributes:
        means: shape ``(C, d)``; zero where a class is absent.
        counts: number of samples behind each mean, int64, shape ``(C,)``.
    """

    meaning: ClassVar[Meaning] = "rows"

    means: Tensor
    counts: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> Self:
        """Average features ``(N, d)`` over the samples of each class, labels of shape ``(N,)``."""
        return cls(*class_means(features, labels, classes))

    @property
    def present(self) -> Tensor:
        """Whether a class has a prototype, bool, shape ``(C,)``."""
        return self.counts > 0

    def check(self, contract: Contract) -> None:
        """Expect finite means of the agreed feature width, and counts that are not negative."""
        expect_float("means", self.means, (contract.classes, contract.feature_width))
        expect_integer("counts", self.counts, (contract.classes,))
        if (self.counts < 0).any():
            raise KnowledgeError(f"counts: expected none below 0, found {int(self.counts.min())}")


@final
@dataclass(frozen=True)
class Features(_Fields):
    """Features of public samples.

    Attributes:
        ids: sample ids, int64, shape ``(N,)``.
        features: shape ``(N, d)``.
    """

    meaning: ClassVar[Meaning] = "rows"

    ids: Tensor
    features: Tensor

    def check(self, contract: Contract) -> None:
        """Expect one finite row of the agreed width per sample of the round's public subset, in its order."""
        expect_float("features", self.features, (len(contract.public_ids), contract.feature_width))
        expect_public_ids(self.ids, contract.public_ids)
