"""What every payload is: a frozen record of tensors with a flat form, a check and a size."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError, expect_names

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
Meaning = Literal["logits", "probabilities", "rows", "weights"]
"""What the floating-point numbers of a payload are: rows of logits, distributions, features, or anything else."""


@dataclass(frozen=True)
class Contract:
    """What an honest reply of one client looks like in this round.

    Attributes:
        classes: number of classes ``C``.
        feature_width: width ``d`` of the features.
        public_ids: ids of the round's public subset, int64, shape ``(M,)``.
        weights: layout of the model whose weights travel: shape and dtype of every tensor, by its name; empty if none.
    """

    classes: int
    feature_width: int
    public_ids: Tensor
    weights: Layout


KINDS: dict[str, type["Knowledge"]] = {}
"""All payload types by name: those below, and those that strategies define."""


class Knowledge(ABC):
    """One payload; a strategy may define its own in its module, by deriving a frozen dataclass from this.

    Attributes:
        meaning: what its floating-point numbers are; codecs go by it.
    """

    meaning: ClassVar[Meaning] = "weights"

    def __init_subclass__(cls, **arguments: Any) -> None:  # noqa: ANN401
        """Make the type known under its name."""
        super().__init_subclass__(**arguments)
        if cls.__name__.startswith("_"):
            return
        other = KINDS.setdefault(cls.__name__, cls)
        if other.__module__ != cls.__module__:
            raise TypeError(f"knowledge {cls.__name__!r}: expected a new name, found that of {other.__module__}'s")
        KINDS[cls.__name__] = cls  # the same module, imported again

    @abstractmethod
    def to_tensors(self) -> dict[str, Tensor]:
        """Return the flat form: named tensors, nothing else."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the payload from its flat form.

        Raises:
            KnowledgeError: a field is missing or unexpected.
        """

    @abstractmethod
    def check(self, contract: Contract) -> None:
        """Hold the payload against the contract.

        Raises:
            KnowledgeError: type, shape, classes, range or finiteness are not as agreed.
        """

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as sent, ids and masks included, without the transport's framing."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.to_tensors().values())


@dataclass(frozen=True)
class _Fields(Knowledge):
    """A payload whose flat form is simply its dataclass fields."""

    def to_tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        expect_names(cls.__name__, {field.name for field in fields(cls)}, set(tensors))
        return cls(**tensors)


class _Named(Knowledge):
    """A payload whose flat form is one dictionary of named tensors."""

    tensors: Mapping[str, Tensor]

    def to_tensors(self) -> dict[str, Tensor]:
        return dict(self.tensors)


def kind(name: str) -> type[Knowledge]:
    """Return the payload type of this name.

    Raises:
        KnowledgeError: there is none.
    """
    if name not in KINDS:
        raise KnowledgeError(f"kind: expected one of {', '.join(sorted(KINDS))}, found {name!r:.80}")
    return KINDS[name]
