"""Arrivals in an order of their own: what is summed up on the way must not depend on who was faster."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def in_order(keys: Iterable[str], arrivals: Iterable[tuple[str, T]]) -> Iterator[T]:
    """Yield what arrives in the sorted order of the keys, each as soon as all before it have come.

    Args:
        keys: of all that may arrive.
        arrivals: keys and what comes under them, each at most once; what follows one that never comes waits for the
            end.
    """
    awaited, early = deque(sorted(keys)), dict[str, T]()
    for key, arrival in arrivals:
        early[key] = arrival
        while awaited and awaited[0] in early:
            yield early.pop(awaited.popleft())
    yield from (early[key] for key in awaited if key in early)
