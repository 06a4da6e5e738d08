"""A cache of targets that server and clients hold alike: what both have is not sent again.

Source: Azuma et al., SCARLET, arXiv:2504.19602. An entry lives ``duration`` rounds. The first time a sample is asked
for after that, its entry is dropped and its fresh row sent without being kept, as in the authors' code; the next row is
kept again. Here one rule says what is fresh, ``round - stored < duration``, for requests and for signals.

All is keyed by sample id, in ascending order; what travels is the flat form of tensors, so its bytes can be counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import torch
from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError, expect, expect_names
from fedkd.knowledge.codecs._bits import pack, unpack


class Signal(IntEnum):
    """What becomes of a sample's entry, in two bits."""

    NOT_CACHED = 0
    """Its row travels, and is not kept."""
    CACHED = 1
    """Its row is in the cache, and does not travel."""
    NEWLY_CACHED = 2
    """Its row travels, and is kept."""
    EXPIRED = 3
    """Its row travels, and the entry is dropped."""


@dataclass(frozen=True)
class Cache:
    """Rows by sample id, and traces of those that were dropped, which a client that missed rounds is told of.

    Attributes:
        ids: int64, ascending, shape ``(E,)``.
        rounds: when each entry was kept or dropped, int32, shape ``(E,)``.
        kept: whether it is there, bool, shape ``(E,)``.
        rows: shape ``(E, C)``; zero where dropped.
    """

    ids: Tensor
    rounds: Tensor
    kept: Tensor
    rows: Tensor

    @classmethod
    def empty(cls, classes: int, dtype: torch.dtype = torch.float32) -> Self:
        """Return a cache without entries."""
        return cls(
            torch.empty(0, dtype=torch.int64),
            torch.empty(0, dtype=torch.int32),
            torch.empty(0, dtype=torch.bool),
            torch.empty(0, classes, dtype=dtype),
        )


def missing(cache: Cache, ids: Tensor, round_: int, duration: int) -> Tensor:
    """Return those of the round's ids ``(M,)`` that have no fresh entry, in their order: clients predict only these."""
    place, known = _find(cache, ids)
    return ids[~(known & _fresh(cache, place, round_, duration))]


def publish(
    cache: Cache, ids: Tensor, rows: Tensor, round_: int, duration: int, keep: Tensor | None = None
) -> tuple[Cache, dict[str, Tensor]]:
    """Return the server's next cache, and what every client with the present one receives.

    Args:
        cache: the server's.
        ids: of the round, int64, all different, shape ``(M,)``.
        rows: fresh targets of :func:`missing`, in that order, shape ``(N, C)``.
        round_: number of the round.
        duration: rounds that an entry lives.
        keep: which of the fresh rows may be kept, bool, shape ``(N,)``; all without.

    Returns:
        The cache, and ``ids`` (8 M bytes), ``signals`` (``ceil(M / 4)`` bytes) and ``rows`` of what travels.

    Raises:
        ValueError: the rows are not those of the missing ids.
    """
    place, known = _find(cache, ids)
    fresh = known & _fresh(cache, place, round_, duration)
    if tuple(rows.shape) != (int((~fresh).sum()), cache.rows.shape[1]):
        expected = f"rows of shape {(int((~fresh).sum()), cache.rows.shape[1])}, one per missing id"
        raise ValueError(f"publish: expected {expected}, found {tuple(rows.shape)}")
    signals = torch.full(ids.shape, int(Signal.CACHED))
    allowed = torch.ones(len(rows), dtype=torch.bool) if keep is None else keep
    signals[~fresh] = torch.where(allowed, int(Signal.NEWLY_CACHED), int(Signal.NOT_CACHED))
    signals[known & ~fresh] = int(Signal.EXPIRED)
    rows = rows.detach().cpu().to(cache.rows.dtype)
    tensors = {"ids": ids.clone(), "signals": pack(signals, 2), "rows": rows}
    return _after(cache, ids, signals, rows, round_), tensors


def receive(cache: Cache, tensors: Mapping[str, Tensor], round_: int) -> tuple[Cache, Tensor]:
    """Return a client's next cache, and the targets of all ids of the round, in their order, shape ``(M, C)``.

    Args:
        cache: the client's, which holds what the server's held before this round.
        tensors: from :func:`publish`.
        round_: number of the round.

    Raises:
        KnowledgeError: the tensors are damaged, or the cache is not the server's.
    """
    expect_names("cache", {"ids", "signals", "rows"}, set(tensors))
    ids, rows = tensors["ids"], tensors["rows"]
    expect("cache: ids", ids, (ids.numel(),), torch.int64)
    if len(ids.unique()) < len(ids):
        raise KnowledgeError("cache: ids: expected different ones, found some twice")
    signals = unpack("cache: signals", tensors["signals"], len(ids), 2)
    cached = signals == Signal.CACHED
    expect("cache: rows", rows, (int((~cached).sum()), cache.rows.shape[1]), cache.rows.dtype)
    place, known = _find(cache, ids)
    wrong = known != ((signals == Signal.CACHED) | (signals == Signal.EXPIRED))
    if wrong.any():
        names = f"{ids[wrong].tolist()!s:.80}"
        raise KnowledgeError(
            f"cache: signals: expected entries as in this cache, found others for ids {names}; catch up"
        )
    found = torch.empty(len(ids), cache.rows.shape[1], dtype=cache.rows.dtype)
    found[cached], found[~cached] = cache.rows[place[cached]], rows
    return _after(cache, ids, signals, rows, round_), found


def catch_up(cache: Cache, since: int) -> dict[str, Tensor]:
    """Return what a client lacks that last received after round ``since`` (0: never), given the server's cache.

    Returns:
        ``ids``, ``rounds`` and ``kept`` of all entries that changed later (8 bytes, 4 bytes and 1 bit each), ``rows``.
    """
    late = cache.rounds > since
    kept = cache.kept[late]
    return {
        "ids": cache.ids[late],
        "rounds": cache.rounds[late],
        "kept": pack(kept, 1),
        "rows": cache.rows[late][kept],
    }


def caught_up(cache: Cache, tensors: Mapping[str, Tensor]) -> Cache:
    """Return a client's cache with what :func:`catch_up` brought.

    Raises:
        KnowledgeError: the tensors are damaged.
    """
    expect_names("catch-up", {"ids", "rounds", "kept", "rows"}, set(tensors))
    ids = tensors["ids"]
    expect("catch-up: ids", ids, (ids.numel(),), torch.int64)
    expect("catch-up: rounds", tensors["rounds"], (len(ids),), torch.int32)
    if (ids[1:] <= ids[:-1]).any():
        raise KnowledgeError("catch-up: ids: expected ascending ones, found others")
    kept = unpack("catch-up: kept", tensors["kept"], len(ids), 1).bool()
    expect("catch-up: rows", tensors["rows"], (int(kept.sum()), cache.rows.shape[1]), cache.rows.dtype)
    return _with(cache, ids, tensors["rounds"], kept, tensors["rows"])


def _after(cache: Cache, ids: Tensor, signals: Tensor, rows: Tensor, round_: int) -> Cache:
    """Return the cache after a round; both sides go through here."""
    newly, expired = signals == Signal.NEWLY_CACHED, signals == Signal.EXPIRED
    changed = newly | expired
    rounds = torch.full((int(changed.sum()),), round_, dtype=torch.int32)
    kept_rows = rows[newly[signals != Signal.CACHED]]
    return _with(cache, ids[changed], rounds, newly[changed], kept_rows)


def _with(cache: Cache, ids: Tensor, rounds: Tensor, kept: Tensor, rows: Tensor) -> Cache:
    """Return the cache with entries replaced or added; a row for every one that is kept, in the order of the ids."""
    stays = ~torch.isin(cache.ids, ids)
    full = torch.zeros(len(ids), cache.rows.shape[1], dtype=cache.rows.dtype)
    full[kept] = rows
    all_ids = torch.cat([cache.ids[stays], ids])
    order = all_ids.argsort()
    return Cache(
        all_ids[order],
        torch.cat([cache.rounds[stays], rounds])[order],
        torch.cat([cache.kept[stays], kept])[order],
        torch.cat([cache.rows[stays], full])[order],
    )


def _find(cache: Cache, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each id stands in the cache, and whether it is kept there; the place means nothing if it is not."""
    if not len(cache.ids):
        return torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
    place = torch.searchsorted(cache.ids, ids).clamp(max=len(cache.ids) - 1)
    return place, (cache.ids[place] == ids) & cache.kept[place]


def _fresh(cache: Cache, place: Tensor, round_: int, duration: int) -> Tensor:
    if not len(cache.ids):
        return torch.zeros(place.shape, dtype=torch.bool)
    return round_ - cache.rounds[place] < duration
