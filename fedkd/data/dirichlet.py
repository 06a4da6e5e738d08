"""Dirichlet shards for thousands of clients, where flwr-datasets' partitioner takes minutes or gives up."""

import heapq
import logging

import numpy as np
from numpy.typing import NDArray

LOG = logging.getLogger("fedkd")
Rows = NDArray[np.int64]


def deal(labels: Rows, clients: int, alpha: float, min_samples: int, source: np.random.Generator) -> list[Rows]:
    """Deal rows out to clients: each class is split by proportions of its own, drawn from Dirichlet(α).

    The law is that of the literature, drawn once. With thousands of clients no draw gives everybody enough, so shards
    below the smallest size are then filled up, row by row, from whoever holds the most at the time, and a warning says
    how many: with small α that evens the sizes out.

    Args:
        labels: class of each row, int64, shape ``(N,)``; ``N >= clients * min_samples``.
        clients: number of clients.
        alpha: concentration α.
        min_samples: rows that everybody gets.
        source: of all draws.

    Returns:
        Row numbers of each client, in no order.

    Raises:
        ValueError: there are too few rows.

    Source: Yurochkin et al. 2019 (arXiv:1905.12022), section 4.
    """
    if clients * min_samples > len(labels):
        needed = f"{clients} times {min_samples}"
        raise ValueError(f"Expected at least {needed} rows, found {len(labels)}.")
    owner = np.empty(len(labels), dtype=np.int64)
    for class_ in np.unique(labels):
        rows = source.permutation(np.flatnonzero(labels == class_))
        shares = source.dirichlet(np.full(clients, alpha)).cumsum()
        # Row j goes to the first client up to whom more than j / n of the class is dealt out.
        owner[rows] = np.searchsorted(shares / shares[-1], np.arange(len(rows)) / len(rows), side="right")
    order = source.permutation(len(labels))
    order = order[np.argsort(owner[order], kind="stable")]
    shards = np.split(order, np.bincount(owner, minlength=clients).cumsum()[:-1])
    return _filled_up(shards, min_samples)


def _filled_up(shards: list[Rows], min_samples: int) -> list[Rows]:
    """Give those who hold too little what the largest shards hold last; ties go by number."""
    poor = [number for number, shard in enumerate(shards) if len(shard) < min_samples]
    if poor:
        moved = sum(min_samples - len(shards[number]) for number in poor)
        LOG.warning(
            "dirichlet: %d of %d clients drew fewer than min_samples = %d and got %d samples from the largest shards; "
            "for the plain distribution lower min_samples",
            *(len(poor), len(shards), min_samples, moved),
        )
    largest = [(-len(shard), number) for number, shard in enumerate(shards) if len(shard) > min_samples]
    heapq.heapify(largest)
    kept = [len(shard) for shard in shards]
    for number in poor:
        gifts = []
        for _ in range(min_samples - len(shards[number])):
            size, giver = largest[0]
            gifts.append(shards[giver][-size - 1])
            kept[giver] -= 1
            if kept[giver] > min_samples:
                heapq.heapreplace(largest, (size + 1, giver))
            else:
                heapq.heappop(largest)
        shards[number] = np.concatenate([shards[number], np.array(gifts, dtype=np.int64)])
        kept[number] = min_samples
    return [shard[:size] for shard, size in zip(shards, kept, strict=True)]
