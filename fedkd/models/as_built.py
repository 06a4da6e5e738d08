"""Whether a module is as it was built, but for the tensors that are put into it.

One module serves many clients, one after another, and what it keeps on ``self`` (a counter, a temperature, a list, a
generator of its own) does not travel with a client's state. So a module that has changed serves nobody else: a client's
bits would depend on who came before it.
"""

import random
import re
from collections import deque
from decimal import Decimal
from functools import partial
from logging import Logger
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TORCHS_OWN = frozenset(vars(nn.Module())) - {"training", "_forward_hooks", "_forward_pre_hooks"}
_HOLDERS = ("_parameters", "_buffers", "_modules")
_FIXED = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, Decimal, PurePath, re.Pattern),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, torch.finfo, torch.iinfo),
    *(np.generic, np.dtype, np.ufunc, type, ModuleType, MethodDescriptorType, Logger),
    *(type(torch.ops.aten.relu), type(torch.ops.aten.relu.default)),
)
"""What does not change in place, or is the whole process's."""


class AsBuilt:
    """What a module's parts hold when it has been built."""

    def __init__(self, module: nn.Module) -> None:
        """Look at all parts of a module that nobody has used yet."""
        known = frozenset(id(part) for part in module.modules())
        self._parts = [_Part(part, known) for part in module.modules()]

    @property
    def changed(self) -> str:
        """Name of something that is not as it was built; empty if there is none."""
        return next((name for part in self._parts if (name := part.difference())), "")


class _Part:
    """One part of a module, with its attributes by name, and what each holds."""

    def __init__(self, part: nn.Module, known: frozenset[int]) -> None:
        self._part, self._known, self._held = part, known, _held(part)
        self._built = {
            name: (value, self._content(value)) for name, value in vars(part).items() if _is_looked_at(part, name)
        }

    def difference(self) -> str:
        """Return the name of an attribute that is another one now; empty if there is none."""
        now, kind = vars(self._part), type(self._part).__name__
        for name, (value, content) in self._built.items():
            if now.get(name) is not value or (content is not None and self._content(value) != content):
                return f"{kind}.{name}"
        for name in now:
            if name not in self._built and _is_looked_at(self._part, name):
                return f"{kind}.{name}"
        return "" if _held(self._part) == self._held else f"{kind}'s tensors or modules"

    def _content(self, value: Any) -> Any:  # noqa: ANN401
        """Return what can be compared of what a value holds; None if it cannot change in place."""
        return self._content_but_for(value, {})

    def _content_but_for(self, value: Any, seen: dict[int, Any]) -> Any:  # noqa: ANN401
        """Return it without what has been looked at on the way: objects may refer to each other."""
        if isinstance(value, _FIXED) or id(value) in seen:
            return None
        seen[id(value)] = value
        try:
            return self._compared(value, seen)
        except Exception:  # who knows what it holds: equal to nothing
            return object()

    def _compared(self, value: Any, seen: dict[int, Any]) -> Any:  # noqa: ANN401
        if isinstance(value, nn.Module):  # one that is no part cannot be looked at
            return None if id(value) in self._known else object()
        if isinstance(value, dict | list | tuple | set | frozenset | deque):
            items = [*value, *value.values()] if isinstance(value, dict) else value
            content = [(_Is(item), self._content_but_for(item, seen)) for item in items]
            fixed = isinstance(value, tuple | frozenset) and all(held is None for _, held in content)
            return None if fixed else content
        if isinstance(value, Tensor):  # which counts how often it was changed in place
            return None if value.is_inference() else value._version
        if isinstance(value, partial | FunctionType | BuiltinFunctionType | MethodType):
            return self._content_but_for(_held_by(value), seen)
        state = _state_of(value)
        return self._content_but_for(vars(value), seen) if state is None else state


def _held_by(function: Any) -> list[Any]:  # noqa: ANN401
    """Return what a function holds besides its code: what it closes over, its defaults, whose method it is."""
    if isinstance(function, partial):
        return [function.func, function.args, function.keywords]
    if isinstance(function, FunctionType):
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        return [*cells, function.__defaults__, function.__kwdefaults__, vars(function)]
    return [function.__self__, getattr(function, "__func__", None)]


def _state_of(value: Any) -> Any:  # noqa: ANN401
    """Return what an array holds, or the state of a generator; None of anything else."""
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    return value.tobytes() if isinstance(value, np.ndarray) else None


def _is_looked_at(part: nn.Module, name: str) -> bool:
    # A recurrent layer keeps its weights in lists besides, and sees to it that they are those in its parameters.
    return name not in _TORCHS_OWN and not (isinstance(part, nn.RNNBase) and name.startswith("_flat_weight"))


def _held(part: nn.Module) -> list[tuple[str, Any]]:
    """Return the names of a part's tensors and modules, and which of them there are none of."""
    return [
        (name, value is None or (id(value) if holder == "_modules" else ""))
        for holder in _HOLDERS
        for name, value in vars(part)[holder].items()
    ]


class _Is:
    """Is equal where it is the same object; keeps it, so that no other one takes its place."""

    def __init__(self, value: Any) -> None:  # noqa: ANN401
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Is) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)
