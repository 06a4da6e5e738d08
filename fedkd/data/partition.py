"""Partition: which training samples each client holds, dealt out by flwr-datasets' partitioners.

Its partitioners take a millisecond or two per shard. IID shards are equal slices of a shuffled list, which NumPy cuts
at once; and for thousands of clients there is a Dirichlet of our own.
"""

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.data import dirichlet
from fedkd.errors import UserError, unknown

if TYPE_CHECKING:
    from datasets import Dataset
    from flwr_datasets.partitioner import Partitioner

_REMEDIES = {
    "iid": "Lower min_samples or the number of clients.",
    "dirichlet": "Raise alpha, or lower min_samples or the number of clients.",
    "pathological": "Lower classes_per_client, min_samples or the number of clients.",
    "natural": "Lower min_samples, or leave out small groups.",
}
SCHEMES = tuple(_REMEDIES)

MANY = 1000
"""Clients from which on Dirichlet shards are our own: see decision 7."""
_LARGEST_ALPHA = 1e6  # as good as IID; far above it the library's draws overflow and give all samples to one client


def partition(
    labels: Tensor,
    *,
    clients: int,
    scheme: str,
    seed: int,
    alpha: float,
    classes_per_client: int,
    min_samples: int,
    groups: Tensor | None,
) -> list[Tensor]:
    """Deal the rows of a data set out to clients; no row goes to two of them.

    Args:
        labels: class numbers, int64, shape ``(N,)``.
        clients: number of clients.
        scheme: ``iid`` (equal shards at random); ``dirichlet`` (each class split by proportions drawn from
            Dirichlet(α)); ``pathological`` (each client holds few classes); ``natural`` (one client per group,
            in the order of the sorted groups; of more groups than clients, each gets several in turn).
        seed: seed of the draws, 0 or more; the same seed deals the same shards.
        alpha: concentration of ``dirichlet``: smaller is more skewed.
        classes_per_client: number of classes of each client under ``pathological``. With fewer clients than classes
            some classes may go to nobody, and their rows are left out; all other schemes deal out every row.
        min_samples: smallest shard that is accepted. ``dirichlet`` draws again, a few times, until all are as large;
            from ``MANY`` clients on it fills small shards up from the largest.
        groups: natural owner of each sample, int64, shape ``(N,)``; only ``natural`` needs it.

    Returns:
        Row numbers of each client's shard, int64, sorted ascending.

    Raises:
        UserError: the scheme is unknown, or it cannot deal out these samples as asked.

    Example:
        >>> labels = torch.tensor([0, 1, 2, 0, 1, 2])
        >>> shards = partition(labels, clients=3, scheme="iid", seed=0, alpha=1.0, classes_per_client=1, min_samples=2,
        ...                    groups=None)
        >>> [len(shard) for shard in shards]
        [2, 2, 2]
    """
    if scheme not in SCHEMES:
        raise unknown("partition scheme", scheme, SCHEMES)
    column = _natural_owners(groups, labels, clients) if scheme == "natural" else labels
    try:
        _check_settings(len(labels), clients, alpha, classes_per_client, min_samples)
        shards = _sorted(_cut(column, clients, scheme, seed, alpha, classes_per_client, min_samples))
        _check_shards(shards, min_samples)
    except ValueError as error:
        settings = f"alpha = {alpha}, classes_per_client = {classes_per_client}, min_samples = {min_samples}"
        raise UserError(
            f"partition {scheme!r}: cannot deal {len(labels)} samples to clients = {clients} with {settings}: "
            f"{' '.join(str(error).split())} {_REMEDIES[scheme]}"
        ) from error
    return shards


def _cut(
    column: Tensor, clients: int, scheme: str, seed: int, alpha: float, classes_per_client: int, min_samples: int
) -> Iterable[NDArray[np.int64]]:
    """Return the rows of each client, in no order."""
    if scheme == "iid":
        return np.array_split(_order(len(column), seed), clients)
    if scheme == "dirichlet" and clients >= MANY:
        return dirichlet.deal(column.numpy(), clients, float(alpha), min_samples, np.random.default_rng(seed))
    partitioner = _partitioner(scheme, clients, seed, alpha, classes_per_client, min_samples)
    partitioner.dataset = _rows(column, seed)
    with _quiet():
        return [np.array(partitioner.load_partition(k)[:]["row"], np.int64) for k in range(clients)]


def _check_settings(rows: int, clients: int, alpha: float, classes_per_client: int, min_samples: int) -> None:
    """Refuse what the library takes without a word, or fails on in some other way than a ``ValueError``."""
    if not 1 <= clients <= rows:
        raise ValueError(f"Expected 1 to {rows} clients, found {clients}.")
    if not 0 < alpha <= _LARGEST_ALPHA:
        raise ValueError(f"Expected alpha above 0 and at most {_LARGEST_ALPHA:g}, found {alpha}.")
    if classes_per_client < 1:
        raise ValueError(f"Expected 1 or more classes per client, found {classes_per_client}.")
    if clients * min_samples > rows:
        raise ValueError(f"Expected at most {rows // clients} samples as the fewest of each, found {min_samples}.")


def _natural_owners(groups: Tensor | None, labels: Tensor, clients: int) -> Tensor:
    """Return the owner of each row: one client each, or several in turn where there are more owners than clients."""
    if groups is None:
        raise UserError("partition 'natural': expected a data set with groups, found none; choose another scheme.")
    if groups.shape != labels.shape:
        raise UserError(f"partition 'natural': expected {len(labels)} groups, one per label, found {len(groups)}.")
    owners, numbers = torch.unique(groups, return_inverse=True)
    if clients > len(owners):
        raise UserError(
            f"partition 'natural': expected at most as many clients as groups in the data ({len(owners)}), "
            f"found {clients}; set clients = {len(owners)}."
        )
    return groups if clients == len(owners) else numbers % clients


def _order(rows: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(rows)


def _rows(column: Tensor, seed: int) -> "Dataset":
    """Build what the library splits: the one column that it looks at, and the row numbers to read back.

    The rows are shuffled because the library cuts in the order of the file: neighbours, such as one person's samples,
    would end up at one client.
    """
    from datasets import Dataset

    order = _order(len(column), seed)
    return Dataset.from_dict({"row": order, "column": column.numpy()[order]})


def _partitioner(
    scheme: str, clients: int, seed: int, alpha: float, classes_per_client: int, min_samples: int
) -> "Partitioner":
    from flwr_datasets.partitioner import (
        DirichletPartitioner,
        NaturalIdPartitioner,
        PathologicalPartitioner,
    )

    if scheme == "natural":
        return NaturalIdPartitioner("column")
    if scheme == "dirichlet":
        # No self-balancing: it keeps samples from clients that hold more than the average, so shards get more even
        # (and classes dealt late more sparse) than the plain Dirichlet(alpha) of the literature.
        return DirichletPartitioner(
            clients, "column", alpha=float(alpha), min_partition_size=min_samples, self_balancing=False, seed=seed
        )
    # Each client's first class is dealt in turn, so that no class is left out once there are as many clients as
    # classes; the library's default draws them all at random and may drop a class's samples with just a warning.
    return PathologicalPartitioner(
        clients, "column", classes_per_client, class_assignment_mode="first-deterministic", seed=seed
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's warnings (of each failed draw) and its progress bar, which cannot be turned off."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _sorted(shards: Iterable[NDArray[np.int64]]) -> list[Tensor]:
    return [torch.from_numpy(np.sort(shard)) for shard in shards]


def _check_shards(shards: list[Tensor], min_samples: int) -> None:
    """Trust, but verify: not every partitioner knows a smallest shard, and a row in two shards would leak data."""
    smallest = min(len(shard) for shard in shards)
    if smallest < min_samples:
        raise ValueError(f"Expected shards of {min_samples} or more, found one of {smallest}.")
    dealt = torch.cat(shards)
    twice = len(dealt) - len(torch.unique(dealt))
    if twice:
        raise ValueError(f"Expected disjoint shards, found {twice} rows dealt out twice.")
