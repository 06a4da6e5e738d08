"""Record a vectorised function once it has been used often, and replay the record: the same operations, less Python.

Under ``vmap`` and ``grad`` most of a small step's time goes into choosing the operations again and again. They depend
on shapes alone, so a function that is called many times with tensors of the same shapes is traced into a list of
operations, which gives the same bits in about half of the time.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

R = TypeVar("R")

TRACE_AFTER = 16
"""Uses before a function is traced: to trace one takes as long as about fifty plain steps save."""
MOST_KEPT = 128

_uses: Counter[Hashable] = Counter()
_kept: OrderedDict[Hashable, tuple[Callable[..., Any], Any]] = OrderedDict()


def traced(key: Hashable, function: Callable[..., R], arguments: tuple[Any, ...], alive: object) -> R:
    """Return ``function(*arguments)``.

    Args:
        key: equal for calls that perform the same operations on tensors of the same shapes, types and devices.
        function: pure, without control flow that depends on values.
        arguments: tensors, or dictionaries of them.
        alive: what the key's identities belong to; it is kept as long as the trace is.
    """
    if key in _kept:
        _kept.move_to_end(key)
        replay: Callable[..., R] = _kept[key][0]
        return replay(*arguments)
    _uses[key] += 1
    if _uses[key] <= TRACE_AFTER:
        return function(*arguments)
    del _uses[key]
    _kept[key] = _record(function, arguments), alive
    if len(_kept) > MOST_KEPT:
        _kept.popitem(last=False)
    return traced(key, function, arguments, alive)


def _record(function: Callable[..., R], arguments: tuple[Any, ...]) -> Callable[..., R]:
    from torch.fx.experimental.proxy_tensor import make_fx  # its import takes a second

    recorded: Callable[..., R] = make_fx(function)(*arguments)
    return recorded
