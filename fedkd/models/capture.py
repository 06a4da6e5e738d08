"""Features of any layer of an unmodified model, by the layer's name, without a trace left on the model.

A layer is named as in ``model.named_modules()``, such as ``layer3.1.conv2``; what is captured is its output. ``:input``
behind the name asks for its input instead, such as what enters a ReLU. A layer that runs several times in one pass, as
the ReLUs in torchvision's ResNets do, needs the number of the run: ``layer3.1.relu#1``, counted from 0.

The hooks hang on the one model, never on its class, and only for the duration of a ``with``. They run wherever the
model does: also inside ``torch.func.functional_call``, ``vmap`` and ``grad``, where the captured tensors belong to the
transformed function and have to be used or returned there. Calls of the same model from other threads are not seen.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from fedkd.errors import UserError, unknown


@contextmanager
def capture(model: nn.Module, layers: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
    """Watch some layers while the model is called.

    What is captured is a copy, part of the graph: a layer that follows, such as an in-place ReLU, cannot change it.

    Args:
        model: stays as it is.
        layers: names, see the module's docstring.

    Yields:
        The features of the latest call of ``model``, by the given names; empty before the first one, and missing
        what a call that is still running, or that failed, has not reached.

    Raises:
        UserError: there is no such layer, it gives or takes something else than one tensor, or it ran several times
            in a call and the name does not say which. Also, at the end of the ``with``, if a call was made and a layer
            took no part in the latest one.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with capture(model, ["0", "1:input"]) as features:
        ...     outputs = model(torch.ones(4, 2))
        >>> features["0"].shape, torch.equal(features["0"], features["1:input"])
        (torch.Size([4, 3]), True)
    """
    if isinstance(layers, str):
        raise UserError(f"layers: expected a list of names, found the text {layers!r}; write [{layers!r}].")
    recorder = _Recorder([_Place.of(name, model) for name in layers], get_ident())
    with ExitStack() as hooks:
        for handle in recorder.attach(model):
            hooks.callback(handle.remove)
        yield recorder.features
    recorder.expect_complete()


def forward(
    model: nn.Module,
    layers: Sequence[str],
    *inputs: Any,  # noqa: ANN401 - what the model takes
    tensors: Mapping[str, Tensor] | None = None,
) -> tuple[Any, dict[str, Tensor]]:
    """Call a model once, and return its output with the features of some layers: a pure function, as a cohort needs.

    Args:
        model: stays as it is.
        layers: names, see the module's docstring.
        inputs: what the model is called with.
        tensors: parameters and buffers to use in place of the model's own, by name.

    Returns:
        The model's output, and the features by the given names.

    Raises:
        UserError: see :func:`capture`.
    """
    with capture(model, layers) as features:
        outputs = model(*inputs) if tensors is None else functional_call(model, dict(tensors), inputs)
    return outputs, dict(features)


@dataclass(frozen=True)
class _Place:
    """Where in a model something is captured.

    Attributes:
        name: as the user gave it.
        layer: the layer's name.
        run: which of its runs in one call, from 0; None for the only one.
        at_input: whether what goes in is meant.
    """

    name: str
    layer: str
    run: int | None
    at_input: bool

    @classmethod
    def of(cls, name: str, model: nn.Module) -> "_Place":
        path, _, side = name.partition(":")
        layer, _, run = path.partition("#")
        known = dict(model.named_modules(remove_duplicate=False))
        if layer not in known:
            raise unknown("layer", layer, filter(None, known), where=type(model).__name__)
        if side not in ("", "input") or not (run.isdecimal() or "#" not in path):
            raise UserError(f"layer {name!r}: expected 'name', 'name#run', 'name:input' or 'name#run:input'.")
        return cls(name, layer, int(run) if run else None, side == "input")


class _Recorder:
    """Keeps what the hooks of one ``with`` see."""

    def __init__(self, places: Sequence[_Place], thread: int) -> None:
        self.features: dict[str, Tensor] = {}
        self._places, self._thread = places, thread
        self._runs: Counter[tuple[str, bool]] = Counter()
        self._running, self._complete = False, False

    def attach(self, model: nn.Module) -> Iterator[Any]:
        """Put the hooks on, and yield their handles one by one."""
        yield model.register_forward_pre_hook(self._start)
        for layer in dict.fromkeys(place.layer for place in self._places):
            module = model.get_submodule(layer)
            yield module.register_forward_pre_hook(lambda _, inputs, layer=layer: self._see(layer, inputs, True))
            yield module.register_forward_hook(lambda _, __, output, layer=layer: self._see(layer, output, False))
        yield model.register_forward_hook(self._end, always_call=True)  # last, after what sees the model's own output

    def expect_complete(self) -> None:
        """Refuse a latest call that left a layer out."""
        missing = [place.name for place in self._places if place.name not in self.features]
        if self._complete and missing:
            name = missing[0]
            layer = name.partition(":")[0].partition("#")[0]
            runs = self._runs[layer, name.endswith(":input")]
            raise UserError(f"layer {name!r}: expected to run in the model's call, found {runs} runs of {layer!r}.")

    def _start(self, *_: object) -> None:
        if get_ident() == self._thread:
            self.features.clear()
            self._runs.clear()
            self._running, self._complete = True, False

    def _end(self, _: object, __: object, output: object) -> None:
        if get_ident() == self._thread:
            self._running, self._complete = False, output is not None  # None after an exception

    def _see(self, layer: str, value: object, at_input: bool) -> None:
        if get_ident() != self._thread or not self._running:
            return
        run = self._runs[layer, at_input]
        self._runs[layer, at_input] += 1
        for place in self._places:
            if (place.layer, place.at_input) != (layer, at_input) or place.run not in (None, run):
                continue
            if place.run is None and run:
                raise UserError(f"layer {place.name!r}: runs several times in a call; say which, as {layer}#0.")
            self.features[place.name] = _only_tensor(place, value).clone()


def _only_tensor(place: _Place, value: object) -> Tensor:
    if place.at_input and isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Tensor):
        side = "input" if place.at_input else "output"
        raise UserError(f"layer {place.name!r}: expected one tensor as its {side}, found {type(value).__name__}.")
    return value
