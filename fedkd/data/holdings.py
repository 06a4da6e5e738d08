"""Holdings: which samples each client is dealt, and in which of its views it has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedkd import seeding
from fedkd.config import Experiment
from fedkd.data.partition import partition
from fedkd.data.sources import DataSet
from fedkd.data.views import parse, parts


@dataclass(frozen=True)
class Holding:
    """What one client holds.

    Attributes:
        key: the client's name: the key of its randomness, state and place in every order.
        architecture: of its student.
        view: of the samples; several joined, such as ``image+audio``, where it holds more than one.
        train: ids of its private training samples that have this view, int64, shape ``(N,)``.
        test: ids of its own test split, int64; empty where the shard is too small for one.
        having: ids of its private training samples that have a view, for each of the views that it holds; the ids
            of a view that a part of the samples lacks are fewer than those of another.
        dealt: ids of the private training samples that it was dealt, with the view or without.
    """

    key: str
    architecture: str
    view: str
    train: Tensor
    test: Tensor
    having: Mapping[str, Tensor]
    dealt: Tensor

    @cached_property
    def missing(self) -> dict[str, int]:
        """Number of its private training samples that lack a view, for each of the views that it holds."""
        return {view: len(self.dealt) - len(ids) for view, ids in self.having.items()}


def deal(experiment: Experiment, dataset: DataSet, train: Tensor) -> dict[str, Holding]:
    """Deal the training samples out to the clients, and say which of them are a client's own test split.

    Args:
        experiment: names clients, partition, architectures and views.
        dataset: all samples.
        train: ids of the samples to be dealt out, int64, shape ``(N,)``.

    Returns:
        What each client holds, by its key, in sorted order.

    Raises:
        UserError: the samples cannot be divided as the experiment asks.
    """
    settings, rows = experiment.federation, dataset.rows(train)
    shards = partition(
        dataset.labels[rows],
        clients=settings.clients,
        scheme=settings.partition,
        seed=seeding.derive_seed(experiment.seed, "partition"),
        alpha=settings.alpha,
        classes_per_client=settings.classes_per_client,
        min_samples=settings.min_samples,
        groups=None if dataset.groups is None else dataset.groups[rows],
    )
    width = len(str(settings.clients - 1))
    while_training = {view: views_of(experiment, view) for view in settings.views}
    holdings: dict[str, Holding] = {}
    for number, shard in enumerate(shards):
        key = f"client-{number:0{width}d}"
        test, dealt = local_split(experiment, key, train[shard])
        architecture = settings.architectures[number % len(settings.architectures)]
        view = settings.views[number % len(settings.views)]
        lacking = _lacking(experiment, key, dealt)
        held = {name: with_view(dataset, dealt, name) for name in while_training[view]}
        having = {name: _without(lacking, name, ids) for name, ids in held.items()}
        tested = with_view(dataset, test, view)
        holdings[key] = Holding(key, architecture, view, having[view], tested, having, dealt)
    return holdings


def local_split(experiment: Experiment, key: str, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a client's own test split, by the experiment's seed and the client's key.

    Args:
        experiment: says how many samples are taken; none where the splits take whole owners.
        key: the client's name.
        ids: of its samples, int64, shape ``(N,)``, ascending.

    Returns:
        The ids to test on, and those to train on, ascending.
    """
    tested = 0 if experiment.data.split_by == "group" else round(experiment.data.local_test * len(ids))
    if not tested:
        return ids[:0], ids
    source = seeding.generator(experiment.seed, "local test", key)
    shuffled = ids[torch.randperm(len(ids), generator=source)]
    return shuffled[:tested].sort().values, shuffled[tested:].sort().values


def with_view(dataset: DataSet, ids: Tensor, view: str) -> Tensor:
    """Return those of some ids, int64, shape ``(N,)``, whose samples have a view: of several joined, all of them."""
    for part in parse(view):
        if part.base in dataset.present:
            ids = ids[dataset.present[part.base][dataset.rows(ids)]]
    return ids


def views_of(experiment: Experiment, *held: str) -> tuple[str, ...]:
    """Return the views that clients have while they train: those that they hold, these singly, and the teacher's.

    Args:
        experiment: names the views.
        held: the views that they hold; those of all clients without.
    """
    settings = experiment.federation
    names = held or settings.views
    teacher = () if settings.teacher_view is None else (settings.teacher_view,)
    return tuple(dict.fromkeys([*names, *(part for name in names for part in parts(name)), *teacher]))


def _lacking(experiment: Experiment, key: str, dealt: Tensor) -> dict[str, Tensor]:
    """Draw the ids of the samples of which a client lacks a view, by the view's name."""
    lacking: dict[str, Tensor] = {}
    for name, share in experiment.federation.missing.items():
        source = seeding.generator(experiment.seed, "missing view", key, name)
        lacking[name] = dealt[torch.randperm(len(dealt), generator=source)[: round(share * len(dealt))]]
    return lacking


def _without(lacking: Mapping[str, Tensor], view: str, ids: Tensor) -> Tensor:
    """Return the ids without those of samples that lack a view: of several joined, one of them."""
    for part in parts(view):
        if part in lacking:
            ids = ids[~torch.isin(ids, lacking[part])]
    return ids
