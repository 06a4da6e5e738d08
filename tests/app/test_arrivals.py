"""Arrivals in the order of their keys, whatever the order in which they come."""

from collections.abc import Iterator
from itertools import combinations, permutations

from fedkd.app.arrivals import in_order

KEYS = ["client-0", "client-1", "client-10", "client-2"]


def test_every_order_of_arrival_gives_the_same() -> None:
    for came in range(len(KEYS) + 1):
        for some in combinations(KEYS, came):
            for arrivals in permutations(some):
                assert list(in_order(reversed(KEYS), [(key, key) for key in arrivals])) == sorted(some)


def test_nothing_waits_longer_than_it_must() -> None:
    told: list[str] = []

    def arrivals() -> Iterator[tuple[str, str]]:
        for key in ("client-1", "client-0", "client-2", "client-10"):
            told.append(f"{key} comes")
            yield key, key

    for key in in_order(KEYS, arrivals()):
        told.append(f"{key} is taken")

    assert told == [
        *("client-1 comes", "client-0 comes", "client-0 is taken", "client-1 is taken"),
        *("client-2 comes", "client-10 comes", "client-10 is taken", "client-2 is taken"),
    ]


def test_who_never_comes_holds_up_the_others_until_the_end() -> None:
    assert list(in_order(KEYS, [("client-2", 2), ("client-1", 1)])) == [1, 2]
    assert list(in_order(KEYS, [])) == []
