"""A model as data: its specification and its tensors, called through a shared skeleton that is never trained."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call

from fedkd.knowledge import Layout
from fedkd.models import ModelSpec, initialise, skeleton
from fedkd.models.capture import capture
from fedkd.models.classifier import Classifier

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """One model of one party.

    Attributes:
        spec: architecture, input shape, number of classes and feature width.
        tensors: parameters and buffers by name.
    """

    spec: ModelSpec
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trained tensors by name."""
        return {name: self.tensors[name] for name in _names(self.spec)[0]}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The other tensors by name, such as BatchNorm's running statistics."""
        return {name: self.tensors[name] for name in _names(self.spec)[1]}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Model":
        """Return the same architecture with other tensors."""
        return replace(self, tensors=dict(tensors))


@lru_cache
def _names(spec: ModelSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of an architecture's parameters and of its buffers."""
    module = skeleton(spec)
    return tuple(name for name, _ in module.named_parameters()), tuple(name for name, _ in module.named_buffers())


def fresh(spec: ModelSpec, seed: int, like: Tensor) -> Model:
    """Return a freshly initialised model with the dtype and device of ``like``."""
    return Model(spec, {name: t.to(like.device) for name, t in initialise(spec, seed, dtype=like.dtype).items()})


@lru_cache
def layout(spec: ModelSpec, dtype: torch.dtype) -> Layout:
    """Return shape and dtype of every tensor of an architecture, by name; floating-point ones have ``dtype``."""
    tensors = {**dict(skeleton(spec).named_parameters()), **dict(skeleton(spec).named_buffers())}
    return {name: (tuple(t.shape), dtype if t.is_floating_point() else t.dtype) for name, t in tensors.items()}


class Network:
    """What an objective sees of a model: call it for logits, or its two halves one after the other.

    Args:
        spec: the architecture.
        tensors: parameters and buffers.
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> None:
        """Bind the tensors to the skeleton of their architecture, which is in evaluation mode."""
        self._module = skeleton(spec, training=False)
        self._halves = {half: below(tensors, f"{half}.") for half in ("features", "head")}

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits ``(N, C)`` of inputs ``(N, ...)``."""
        return self.head(self.features(inputs))

    def features(self, inputs: Tensor) -> Tensor:
        """Return the features ``(N, d)`` of inputs ``(N, ...)``."""
        return self._call("features", inputs)

    def captured(self, inputs: Tensor, layers: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the features ``(N, d)`` of inputs, and what some layers of the feature part gave on the way.

        Args:
            inputs: shape ``(N, ...)``.
            layers: their names within the feature part; see :mod:`fedkd.models.capture`.

        Raises:
            UserError: there is no such layer, or its name does not say which of its runs is meant.
        """
        with capture(self._module.features, layers) as seen:
            features = self.features(inputs)
        return features, dict(seen)

    def head(self, features: Tensor) -> Tensor:
        """Return the logits ``(N, C)`` of features ``(N, d)``."""
        return self._call("head", features)

    def _call(self, half: str, inputs: Tensor) -> Tensor:
        outputs: Tensor = functional_call(getattr(self._module, half), self._halves[half], (inputs,))
        return outputs


class BoundNetwork(Network):
    """A network that is trained: its tensors lie in a module of its own, so that nothing is bound again at each call.

    Args:
        spec: the architecture.
        tensors: parameters and buffers; both may be changed in place.
        number: of networks with one architecture in a fit, each has another.
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Tensor], *, number: int) -> None:
        """Put the tensors into the module, which is in training mode."""
        self._module, self._places = _bench(spec, number)
        self._buffers = _names(spec)[1]
        for place in self._places:
            place.within[place.key] = tensors[place.name]

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers by name as they are now, whether the module has changed them in place or put others there."""
        return {place.name: place.within[place.key] for place in self._places if place.name in self._buffers}

    def release(self) -> None:
        """Take the tensors out of the module, which outlives them."""
        for place in self._places:
            place.within[place.key] = place.own

    def _call(self, half: str, inputs: Tensor) -> Tensor:
        outputs: Tensor = getattr(self._module, half)(inputs)
        return outputs


@dataclass(frozen=True)
class _Place:
    """Where a module has a tensor.

    Attributes:
        name: of the tensor; tied weights have one name and several places.
        within: the dictionary of a part of the module that holds it.
        key: its name there.
        own: what the module has there when nothing else is.
    """

    name: str
    within: dict[str, Any]
    key: str
    own: Tensor


@lru_cache
def _bench(spec: ModelSpec, number: int) -> tuple[Classifier, list[_Place]]:
    """Return a module to put tensors into, in training mode, and the places for them."""
    module = copy.deepcopy(skeleton(spec, training=True))
    parts, first, places = dict(module.named_modules(remove_duplicate=False)), dict[int, str](), []
    for kind, entries in (("_parameters", module.named_parameters), ("_buffers", module.named_buffers)):
        for path, own in entries(remove_duplicate=False):
            part, _, key = path.rpartition(".")
            places.append(_Place(first.setdefault(id(own), path), vars(parts[part])[kind], key, own))
    return module, places


def below(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return what has a name with this prefix, under the name without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
