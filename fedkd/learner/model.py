"""A model as data: its specification and its tensors, which are put into a shared module to be called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call

from fedkd.knowledge import Layout
from fedkd.models import ModelSpec, build_aside, initialise, kept, skeleton
from fedkd.models.as_built import AsBuilt
from fedkd.models.capture import capture
from fedkd.models.classifier import Classifier
from fedkd.torch_internals import times_written

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
        return replace(self, tensors=in_order(self.spec, tensors))


def in_order(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's tensors in the order of its architecture, from wherever they come."""
    order = _names(spec).order
    return {name: tensors[name] for name in order} if tensors.keys() == set(order) else dict(tensors)


class _Names(NamedTuple):
    order: tuple[str, ...]
    trained: tuple[str, ...]
    others: tuple[str, ...]
    buffers: frozenset[str]


@kept
def _names(spec: ModelSpec) -> _Names:
    """Return the names of an architecture's tensors: all, those it trains, the others, and the buffers among these."""
    module = skeleton(spec)
    buffers = [name for name, _ in module.named_buffers()]
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    order = [name for name, _ in module.named_parameters()] + buffers
    return _Names(tuple(order), tuple(trained), (*frozen, *buffers), frozenset(buffers))


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
        number: of networks with one architecture in a fit, each has another.
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Tensor], *, number: int = 0) -> None:
        """Bind the tensors to the module of their architecture that is in evaluation mode.

        Of buffers it takes copies, since a module may change them at each call.
        """
        self._used = _bench(spec, number, training=False)
        self._module = self._used.module
        self._buffers = {name: tensors[name].clone() for name in _names(spec).buffers if name in tensors}
        self._halves = {half: below({**tensors, **self._buffers}, f"{half}.") for half in ("features", "head")}

    @property
    def changed(self) -> str:
        """Name of what the module keeps, no tensor that it trains, and has changed; empty if there is none."""
        written = (name for name, t in self._buffers.items() if times_written(t) or self._now(name) is not t)
        return self._used.built.changed or next(written, "")

    def _now(self, buffer: str) -> Tensor:
        """Return what the module has put where a buffer was."""
        half, _, key = buffer.partition(".")
        return self._halves[half][key]

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
        self._buffers = {}  # which a module in training may write
        self._spec, self._number = spec, number
        self._used = _bench(spec, number, training=True)
        self._module = self._used.module
        self._others = frozenset(_names(spec).others)
        self._before = [place.within[place.key] for place in self._used.places]
        for place in self._used.places:
            place.within[place.key] = tensors[place.name]

    @property
    def others(self) -> dict[str, Tensor]:
        """The other tensors by name as they are now: the module may have changed them, or put others there."""
        return {place.name: place.within[place.key] for place in self._used.places if place.name in self._others}

    def release(self) -> None:
        """Take the tensors out of the module, which outlives them; if it has changed, it serves nobody else."""
        for place, before in zip(self._used.places, self._before, strict=True):
            place.within[place.key] = before
        if self.changed:
            _benches(self._spec).pop((self._number, True), None)

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


@dataclass(frozen=True)
class _Bench:
    """A module to run models in.

    Attributes:
        module: in training mode, or in evaluation mode.
        places: where it has its tensors.
        built: what it held when it was built.
    """

    module: Classifier
    places: Sequence[_Place]
    built: AsBuilt


def _bench(spec: ModelSpec, number: int, *, training: bool) -> _Bench:
    """Return the module of this number and mode to put tensors into, as it was built."""
    benches, which = _benches(spec), (number, training)
    if which not in benches or benches[which].built.changed:
        benches[which] = _new_bench(spec, training=training)
    return benches[which]


@kept
def _benches(spec: ModelSpec) -> dict[tuple[int, bool], _Bench]:
    return {}


def _new_bench(spec: ModelSpec, *, training: bool) -> _Bench:
    module = build_aside(spec, seed=0).train(training)  # and no copy, to whose original a part of it may hold on
    parts, first, places = dict(module.named_modules(remove_duplicate=False)), dict[int, str](), []
    for kind, entries in (("_parameters", module.named_parameters), ("_buffers", module.named_buffers)):
        for path, own in entries(remove_duplicate=False):
            part, _, key = path.rpartition(".")
            places.append(_Place(first.setdefault(id(own), path), vars(parts[part])[kind], key))
    return _Bench(module, places, AsBuilt(module))


def below(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return what has a name with this prefix, under the name without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
