"""Predictions: of identified samples, and per class."""

from dataclasses import dataclass
from typing import ClassVar, Self, final

from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError, expect_bool, expect_float, expect_public_ids
from fedkd.knowledge._class_means import class_means
from fedkd.knowledge.base import Contract, Meaning, _Fields

_SUM_TOLERANCE = 1e-4


@final
@dataclass(frozen=True)
class SoftLabels(_Fields):
    """Predictions on identified samples.

    Attributes:
        ids: sample ids, int64, shape ``(N,)``.
        logits: unnormalised log-probabilities, shape ``(N, C)``.
    """

    meaning: ClassVar[Meaning] = "logits"

    ids: Tensor
    logits: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, shape ``(N, C)``."""
        return self.logits.softmax(-1)

    def check(self, contract: Contract) -> None:
        """Expect one finite row per sample of the round's public subset, in its order."""
        expect_float("logits", self.logits, (len(contract.public_ids), contract.classes))
        expect_public_ids(self.ids, contract.public_ids)


@final
@dataclass(frozen=True)
class ClassLogits(_Fields):
    """Mean prediction per true class.

    Attributes:
        probabilities: mean softmax output of the samples of each class, shape ``(C, C)``; zero where absent.
        present: whether the class is there at all, bool, shape ``(C,)``.
    """

    meaning: ClassVar[Meaning] = "probabilities"

    probabilities: Tensor
    present: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, classes: int) -> Self:
        """Average the softmax of logits ``(N, C)`` over the samples of each true class, labels of shape ``(N,)``."""
        means, counts = class_means(logits.softmax(-1), labels, classes)
        return cls(means, counts > 0)

    def check(self, contract: Contract) -> None:
        """Expect finite distributions in the rows that are present."""
        expect_float("probabilities", self.probabilities, (contract.classes, contract.classes))
        expect_bool("present", self.present, (contract.classes,))
        sums = self.probabilities[self.present].sum(-1)
        if (self.probabilities < 0).any() or ((sums - 1).abs() > _SUM_TOLERANCE).any():
            raise KnowledgeError(
                "probabilities: expected rows that are distributions, found negative entries or other sums"
            )
