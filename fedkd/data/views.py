"""Views by name: ``image`` is a view as the data set has it, ``image@16@jpeg30`` is one of lower quality.

A name is one part, or several joined by ``+`` (``acc+gyro``). A part is a base view, followed by any number of
transforms, each behind an ``@`` and applied left to right; :mod:`fedkd.data.transforms` has their table.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fedkd.data.sources import DataSet
from fedkd.data.transforms import Place, Step, bind, in_chunks, parse_step
from fedkd.errors import UserError, unknown
from fedkd.models.shapes import InputShape

_PART = re.compile(r"(?P<base>[^@+]+)(?P<transforms>(@[^@+]*)*)")

# Every client of a process may ask for the same view: it is computed once, and goes when its data set does.
_computed: WeakKeyDictionary[DataSet, dict[str, Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Part:
    """One part of a view's name."""

    name: str
    base: str
    steps: tuple[Step, ...]


@lru_cache  # asked once for every client
def parse(name: str) -> tuple[Part, ...]:
    """Split a view's name into its parts.

    Raises:
        UserError: it is not of this form, or there is no such transform.

    Example:
        >>> [(part.base, [step.text for step in part.steps]) for part in parse("image@16@jpeg30+audio")]
        [('image', ['16', 'jpeg30']), ('audio', [])]
    """
    return tuple(_parse_part(name, text) for text in parts(name))


def parts(name: str) -> tuple[str, ...]:
    """Split a view's name into the names of its parts."""
    return tuple(name.split("+"))


def view(dataset: DataSet, name: str) -> Tensor:
    """Return one view of all samples, float32; shared within the process: do not write to it.

    Args:
        dataset: the samples.
        name: see the module.

    Returns:
        Shape ``(N, ...)``: the base view as it is if there is no transform, and ``(N, D)`` for several parts, each
        flattened, one behind the other in the name's order.

    Raises:
        UserError: the name is wrong or has a part twice, a base view does not exist, or a transform does not suit it.
    """
    parsed = parse(name)
    if twice := [part.name for part in parsed if parsed.count(part) > 1]:
        raise UserError(f"view {name!r}: expected each part once, found {twice[0]!r} more often; name it once.")
    if len(parsed) == 1:
        return _values(dataset, parsed[0])
    flat = [_values(dataset, part).reshape(len(dataset), -1) for part in parsed]
    return _once(dataset, name, lambda: torch.cat(flat, dim=1))


def shape(dataset: DataSet, name: str) -> InputShape:
    """Return the shape of one sample in a view, or of each part if there are several.

    Raises:
        UserError: see :func:`view`.
    """
    shapes = tuple(tuple(_values(dataset, part).shape[1:]) for part in parse(name))
    return shapes if len(shapes) > 1 else shapes[0]


def present(dataset: DataSet, name: str) -> Tensor:
    """Return which samples have every part of a view, bool, shape ``(N,)``.

    Raises:
        UserError: see :func:`view`.
    """
    found = torch.ones(len(dataset), dtype=torch.bool)
    for part in parse(name):
        _base(dataset, part)
        found &= dataset.present.get(part.base, found)
    return found


def _parse_part(name: str, text: str) -> Part:
    match = _PART.fullmatch(text)
    if match is None:
        form = "'base' or 'base@transform', or several of these joined by '+', such as 'image@16+audio'"
        raise UserError(f"view {name!r}: expected {form}, found {text!r}; correct the name.")
    return Part(text, match["base"], tuple(parse_step(name, step) for step in match["transforms"].split("@")[1:]))


def _values(dataset: DataSet, part: Part) -> Tensor:
    base = _base(dataset, part)
    if not part.steps:
        return base
    place = Place(part.base, base, tuple(base.shape[1:]), dataset.rates.get(part.base))
    return _once(dataset, part.name, lambda: in_chunks(bind(place, part.steps), base))


def _base(dataset: DataSet, part: Part) -> Tensor:
    if part.base not in dataset.views:
        raise unknown("view", part.base, dataset.views, where=f"data set {dataset.name!r}")
    return dataset.views[part.base]


def _once(dataset: DataSet, name: str, compute: Callable[[], Tensor]) -> Tensor:
    made = _computed.setdefault(dataset, {})
    if name not in made:
        made[name] = compute()
    return made[name]
