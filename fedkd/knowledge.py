"""What travels between clients and the server: typed, checked before use, counted in bytes.

Every payload is a frozen record of tensors. ``to_tensors`` and ``from_tensors`` give its flat form, which is what is
sent, stored and counted; ``check`` holds a payload that came from elsewhere against the contract of the round.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, final

import torch
from torch import Tensor

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

_SUM_TOLERANCE = 1e-4


class KnowledgeError(ValueError):
    """A payload that breaks the round's contract; the message says what was expected and what was found."""


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
    """One payload; a strategy may define its own in its module, by deriving a frozen dataclass from this."""

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
        _expect_names(cls.__name__, {field.name for field in fields(cls)}, set(tensors))
        return cls(**tensors)


@final
@dataclass(frozen=True)
class SoftLabels(_Fields):
    """Predictions on identified samples.

    Attributes:
        ids: sample ids, int64, shape ``(N,)``.
        logits: unnormalised log-probabilities, shape ``(N, C)``.
    """

    ids: Tensor
    logits: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, shape ``(N, C)``."""
        return self.logits.softmax(-1)

    def check(self, contract: Contract) -> None:
        """Expect one finite row per sample of the round's public subset, in its order."""
        _expect_float("logits", self.logits, (len(contract.public_ids), contract.classes))
        _expect_integer("ids", self.ids, (len(contract.public_ids),))
        if not torch.equal(self.ids, contract.public_ids):
            raise KnowledgeError("ids: expected the ids of the round's public subset in its order, found others")


@final
@dataclass(frozen=True)
class ClassLogits(_Fields):
    """Mean prediction per true class.

    Attributes:
        probabilities: mean softmax output of the samples of each class, shape ``(C, C)``; zero where absent.
        present: whether the class is there at all, bool, shape ``(C,)``.
    """

    probabilities: Tensor
    present: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, classes: int) -> Self:
        """Average the softmax of logits ``(N, C)`` over the samples of each true class, labels of shape ``(N,)``."""
        means, counts = _class_means(logits.softmax(-1), labels, classes)
        return cls(means, counts > 0)

    def check(self, contract: Contract) -> None:
        """Expect finite distributions in the rows that are present."""
        _expect_float("probabilities", self.probabilities, (contract.classes, contract.classes))
        _expect_bool("present", self.present, (contract.classes,))
        sums = self.probabilities[self.present].sum(-1)
        if (self.probabilities < 0).any() or ((sums - 1).abs() > _SUM_TOLERANCE).any():
            raise KnowledgeError(
                "probabilities: expected rows that are distributions, found negative entries or other sums"
            )


@final
@dataclass(frozen=True)
class Prototypes(_Fields):
    """Mean feature per class.

    Attributes:
        means: shape ``(C, d)``; zero where a class is absent.
        counts: number of samples behind each mean, int64, shape ``(C,)``.
    """

    means: Tensor
    counts: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> Self:
        """Average features ``(N, d)`` over the samples of each class, labels of shape ``(N,)``."""
        return cls(*_class_means(features, labels, classes))

    @property
    def present(self) -> Tensor:
        """Whether a class has a prototype, bool, shape ``(C,)``."""
        return self.counts > 0

    def check(self, contract: Contract) -> None:
        """Expect finite means of the agreed feature width, and counts that are not negative."""
        _expect_float("means", self.means, (contract.classes, contract.feature_width))
        _expect_integer("counts", self.counts, (contract.classes,))
        if (self.counts < 0).any():
            raise KnowledgeError(f"counts: expected none below 0, found {int(self.counts.min())}")


@final
@dataclass(frozen=True)
class Features(_Fields):
    """Features of identified samples.

    Attributes:
        ids: sample ids, int64, shape ``(N,)``.
        features: shape ``(N, d)``.
    """

    ids: Tensor
    features: Tensor

    def check(self, contract: Contract) -> None:
        """Expect finite features of the agreed width, one row per id."""
        rows = self.ids.numel()
        _expect_integer("ids", self.ids, (rows,))
        _expect_float("features", self.features, (rows, contract.feature_width))


class _Named(Knowledge):
    """A payload whose flat form is one dictionary of named tensors."""

    tensors: Mapping[str, Tensor]

    def to_tensors(self) -> dict[str, Tensor]:
        return dict(self.tensors)


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
        _expect_names("weights", set(contract.weights), set(self.tensors))
        for name, tensor in self.tensors.items():
            _expect_layout(name, tensor, *contract.weights[name])
        floating = [tensor.reshape(-1) for tensor in self.tensors.values() if tensor.is_floating_point()]
        if floating and not torch.isfinite(torch.cat(floating)).all():  # one look at all, for one for each costs more
            for name, tensor in self.tensors.items():
                _expect_finite(name, tensor)
        for name, tensor in self.tensors.items():
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
            _expect(name, tensor, tuple(tensor.shape), tensor.dtype)


@final
@dataclass(frozen=True)
class Bundle(Knowledge):
    """Several payloads that travel together, such as weights and a generator.

    Attributes:
        parts: payloads by name; a name holds letters, digits and underscores.
    """

    parts: Mapping[str, Knowledge]

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the parts' tensors under ``<name>:<kind>/<field>``."""
        return {
            f"{name}:{type(part).__name__}/{field}": tensor
            for name, part in self.parts.items()
            for field, tensor in part.to_tensors().items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the parts from their tensors."""
        grouped: dict[str, dict[str, Tensor]] = {}
        for path, tensor in tensors.items():
            head, separator, field = path.partition("/")
            if not separator or head.count(":") != 1:
                raise KnowledgeError(f"bundle: expected fields named '<name>:<kind>/<field>', found {path!r}")
            grouped.setdefault(head, {})[field] = tensor
        names = [head.split(":")[0] for head in grouped]
        if len(set(names)) < len(names):
            raise KnowledgeError(f"bundle: expected one payload of each name, found {sorted(grouped)}")
        return cls({head.split(":")[0]: kind(head.split(":")[1]).from_tensors(part) for head, part in grouped.items()})

    def check(self, contract: Contract) -> None:
        """Check every part."""
        for part in self.parts.values():
            part.check(contract)


def kind(name: str) -> type[Knowledge]:
    """Return the payload type of this name.

    Raises:
        KnowledgeError: there is none.
    """
    if name not in KINDS:
        raise KnowledgeError(f"kind: expected one of {', '.join(KINDS)}, found {name!r}")
    return KINDS[name]


def _class_means(values: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean of values ``(N, D)`` per class, ``(C, D)``, zero where absent, and the counts, ``(C,)``."""
    one_hot = torch.nn.functional.one_hot(labels, classes)
    counts = one_hot.sum(0)
    sums = one_hot.T.double() @ values.double()
    return (sums / counts.clamp(min=1)[:, None]).to(values.dtype), counts


def _expect_names(what: str, expected: set[str], found: set[str]) -> None:
    if expected != found:
        missing, extra = sorted(expected - found), sorted(found - expected)
        raise KnowledgeError(f"{what}: expected the fields {sorted(expected)}; missing {missing}, unexpected {extra}")


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    _expect_layout(name, tensor, shape, dtype)
    _expect_finite(name, tensor)


def _expect_layout(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise KnowledgeError(
            f"{name}: expected {dtype} of shape {shape}, found {tensor.dtype} of shape {tuple(tensor.shape)}"
        )


def _expect_finite(name: str, tensor: Tensor) -> None:
    if (tensor.is_floating_point() or tensor.is_complex()) and not torch.isfinite(tensor).all():
        raise KnowledgeError(
            f"{name}: expected finite values, found {int((~torch.isfinite(tensor)).sum())} that are not"
        )


def _expect_float(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if not tensor.is_floating_point():
        raise KnowledgeError(f"{name}: expected floating point, found {tensor.dtype}")
    _expect(name, tensor, shape, tensor.dtype)


def _expect_integer(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    _expect(name, tensor, shape, torch.int64)


def _expect_bool(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    _expect(name, tensor, shape, torch.bool)
