"""A model as data: its specification and its tensors, called through a shared skeleton that is never trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call

from fedkd.knowledge import Layout
from fedkd.models import ModelSpec, build_aside, initialise, kept, skeleton
from fedkd.models.attributes import Attributes, attributes_of, changed, restore
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
        return {name: self.tensors[name] for name in _names(self.spec).trained}

    @property
    def others(self) -> dict[str, Tensor]:
        """The other tensors by name: buffers, and parameters that the architecture itself has frozen."""
        return {name: self.tensors[name] for name in _names(self.spec).others}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Model":
        """Return the same architecture with other tensors."""
        return replace(self, tensors=dict(tensors))


class _Names(NamedTuple):
    trained: tuple[str, ...]
    others: tuple[str, ...]
    buffers: frozenset[str]


@kept
def _names(spec: ModelSpec) -> _Names:
    """Return the names of what an architecture trains, of its other tensors, and of the buffers among them."""
    module = skeleton(spec)
    buffers = [name for name, _ in module.named_buffers()]
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    trained = tuple(name for name, parameter in module.named_parameters() if parameter.requires_grad)
    return _Names(trained, (*frozen, *buffers), frozenset(buffers))


def fresh(spec: ModelSpec, seed: int, like: Tensor) -> Model:
    """Return a freshly initialised model with the dtype and device of ``like``."""
    return Model(spec, {name: t.to(like.device) for name, t in initialise(spec, seed, dtype=like.dtype).items()})


@kept
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
        """Bind the tensors to the skeleton of their architecture, which is in evaluation mode.

        Of buffers it takes copies, since a module may change them at each call.
        """
        self._module = skeleton(spec, training=False)
        restore(_as_built(spec, None))
        buffers = _names(spec).buffers
        own = {name: tensor.clone() if name in buffers else tensor for name, tensor in tensors.items()}
        self._halves = {half: below(own, f"{half}.") for half in ("features", "head")}

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
        self._built = _as_built(spec, number)
        self._others = frozenset(_names(spec).others)
        self._before = [place.within[place.key] for place in self._places]
        for place in self._places:
            place.within[place.key] = tensors[place.name]

    @property
    def others(self) -> dict[str, Tensor]:
        """The other tensors by name as they are now: the module may have changed them, or put others there."""
        return {place.name: place.within[place.key] for place in self._places if place.name in self._others}

    @property
    def changed(self) -> str:
        """Name of an attribute, no tensor of the model, that the module itself has changed; empty if there is none."""
        return changed(self._built)

    def release(self) -> None:
        """Leave the module, which outlives the tensors, as it was before."""
        restore(self._built)
        for place, before in zip(self._places, self._before, strict=True):
            place.within[place.key] = before

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
    """

    name: str
    within: dict[str, Any]
    key: str


@kept
def _bench(spec: ModelSpec, number: int) -> tuple[Classifier, list[_Place]]:
    """Return a module to put tensors into, in training mode, and the places for them."""
    module = build_aside(spec, seed=0)  # and no copy of another one, which a part of it may hold on to
    parts, first, places = dict(module.named_modules(remove_duplicate=False)), dict[int, str](), []
    for kind, entries in (("_parameters", module.named_parameters), ("_buffers", module.named_buffers)):
        for path, own in entries(remove_duplicate=False):
            part, _, key = path.rpartition(".")
            places.append(_Place(first.setdefault(id(own), path), vars(parts[part])[kind], key))
    return module, places


@kept
def _as_built(spec: ModelSpec, number: int | None) -> list[Attributes]:
    """Return the attributes of an unused bench, or without a number of the skeleton in evaluation mode."""
    return attributes_of(skeleton(spec, training=False) if number is None else _bench(spec, number)[0])


def below(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return what has a name with this prefix, under the name without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
