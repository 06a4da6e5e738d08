"""What a module keeps beside its tensors, such as a counter or a temperature: each client finds it as it was built.

One module serves many clients, one after another, and what it keeps does not travel with a client's state. Without
this, a client's bits would depend on who was trained before it, and the last one's data would never be freed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TORCHS_OWN = frozenset(vars(nn.Module())) - {"training"}


@dataclass(frozen=True)
class Attributes:
    """The attributes of one part of a module.

    Attributes:
        part: the part.
        values: by name.
        contents: of those that can change in place, what they held.
    """

    part: nn.Module
    values: dict[str, Any]
    contents: dict[str, Any]


def attributes_of(module: nn.Module) -> list[Attributes]:
    """Return the attributes of a module's parts, to be brought back by :func:`restore`; without those of torch's own.

    These keep nothing but what they need, such as an LSTM its weights in a list besides.
    """
    found = []
    for part in module.modules():
        if type(part).__module__.startswith("torch."):
            continue
        values = {name: value for name, value in vars(part).items() if name not in _TORCHS_OWN}
        contents = {name: _content(value) for name, value in values.items() if _content(value) is not None}
        found.append(Attributes(part, values, contents))
    return found


def restore(attributes: Sequence[Attributes]) -> None:
    """Give the parts of a module their attributes back."""
    for one in attributes:
        now = vars(one.part)
        for name in now.keys() - one.values.keys() - _TORCHS_OWN:
            del now[name]
        now.update(one.values)
        for name, content in one.contents.items():
            _write(now[name], content)


def changed(attributes: Sequence[Attributes]) -> str:
    """Return the name of an attribute that is not as it was; empty if there is none."""
    for one in attributes:
        now = vars(one.part)
        for name in now.keys() - _TORCHS_OWN:
            same = name in one.values and now[name] is one.values[name]
            if not same or (name in one.contents and not _same(_content(now[name]), one.contents[name])):
                return f"{type(one.part).__name__}.{name}"
    return ""


def _content(value: Any) -> Any:  # noqa: ANN401
    """Return a copy of what a value holds, if it can change in place; what lies deeper is its author's own concern."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, list | dict | set | np.ndarray):
        return value.copy()
    return value.detach().clone() if isinstance(value, Tensor) else None


def _write(value: Any, content: Any) -> None:  # noqa: ANN401
    if isinstance(value, torch.Generator):
        value.set_state(content)
    elif isinstance(value, list | np.ndarray):
        value[:] = content
    elif isinstance(value, Tensor):
        with torch.no_grad():
            value.copy_(content)
    else:
        value.clear()
        value.update(content)


def _same(now: Any, before: Any) -> bool:  # noqa: ANN401
    if isinstance(before, Tensor):
        return bool(now.equal(before))
    if isinstance(before, np.ndarray):
        return np.array_equal(now, before)
    if isinstance(before, dict):
        return {key: id(value) for key, value in now.items()} == {key: id(value) for key, value in before.items()}
    return [id(one) for one in now] == [id(one) for one in before]
