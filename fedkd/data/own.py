"""Federations whose clients bring their own samples: what all parties share, and what one client's node adds to it.

The shared part, the commons, holds the public, validation and test samples, of which every party has the same copy. A
node puts its own samples beside them; they never leave it.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from fedkd.config import Experiment
from fedkd.data import sources
from fedkd.data.federation import Federation, build, key_of
from fedkd.data.holdings import Holding, local_split, views_of, with_view
from fedkd.data.sources import DataSet
from fedkd.data.sources.dataset import SPLITS, UNLABELLED
from fedkd.data.splits import Splits
from fedkd.data.views import parse
from fedkd.errors import UserError, unknown

KEY = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""Names of clients: safe in file names and on any screen."""


@dataclass(frozen=True)
class Owner:
    """What a node says of its client and its samples.

    Attributes:
        key: the client's name.
        data: path of its samples: an ``.npz`` file, or a folder of images or recordings.
        view: of its samples; may be left out where the experiment names one only.
        architecture: of its student; may be left out where the experiment names one only.
    """

    key: str
    data: str
    view: str | None = None
    architecture: str | None = None


def build_node(experiment: Experiment, owner: Owner) -> Federation:
    """Build the federation as one client's node sees it: the commons and the client's own samples; cached.

    Raises:
        UserError: the client or its samples do not fit the federation.
    """
    if not KEY.fullmatch(owner.key):
        expected = "expected small letters, digits and '-', at most 63, beginning with a letter or digit"
        raise UserError(f"client: {expected}, found {owner.key!r:.80}; rename it.")
    settings = experiment.federation
    view = _chosen("view", owner.view, settings.views)
    architecture = _chosen("architecture", owner.architecture, settings.architectures)
    shared = build(experiment)
    own = sources.load(owner.data)
    return _build(key_of(experiment), shared.dataset, shared.splits, own, owner.key, architecture, view)


@lru_cache(maxsize=2)
def _build(
    text: str, shared: DataSet, splits: Splits, own: DataSet, key: str, architecture: str, view: str
) -> Federation:
    experiment = Experiment.model_validate_json(text)
    own = with_ids(own, shared)
    dataset = joined(shared, own)
    test, dealt = _divided(experiment, key, own)
    having = {name: with_view(dataset, dealt, name) for name in views_of(experiment, view)}
    tested = with_view(dataset, test, view)
    if not len(having[view]) and not len(tested):
        bases = ", ".join(part.base for part in parse(view))
        raise UserError(f"data of {key}: expected samples that have {bases}, found none among {len(own)}; add them.")
    holding = Holding(key, architecture, view, having[view], tested, having, dealt)
    return Federation(experiment, dataset, replace(splits, train=having[view]), {key: holding})


def with_ids(own: DataSet, shared: DataSet) -> DataSet:
    """Return a client's samples under ids that no shared sample has, and with the shared numbers of the classes.

    Args:
        own: the client's samples; without ids of their own they are numbered behind the shared ones.
        shared: the commons.

    Raises:
        UserError: a class is unknown, or an id is that of a shared sample.
    """
    for name in own.classes:
        if name not in shared.classes:
            raise unknown("class", name, shared.classes, where=f"data set {own.name!r}")
    numbers = torch.tensor([shared.classes.index(name) for name in own.classes])
    ids = own.given_ids
    if ids is None:
        ids = own.ids + int(shared.ids.max()) + 1
    if both := int(torch.isin(ids, shared.ids).sum()):
        expected = "expected ids that no shared sample has"
        raise UserError(f"data set {own.name!r}: {expected}, found {both} that one has; renumber, or leave 'ids' out.")
    if bool((own.labels == UNLABELLED).any()):
        raise UserError(f"data set {own.name!r}: expected a label for every sample, found some without; add them.")
    split = torch.full_like(ids, SPLITS.index("train"))
    return replace(own, labels=numbers[own.labels], classes=shared.classes, given_ids=ids, split=split)


def joined(shared: DataSet, own: DataSet) -> DataSet:
    """Return shared samples and a client's own ones as one data set, by ascending id, with the shared one's views.

    A view that only the client has is left out; one that it lacks is marked as missing from its samples.

    Args:
        shared: the commons, with a split for every sample.
        own: the client's samples, with the same classes and other ids (see :func:`with_ids`).

    Raises:
        UserError: they have no view in common, or one of another shape or sampling rate.
    """
    if not set(shared.views) & set(own.views):
        expected, found = ", ".join(shared.views), ", ".join(own.views)
        raise UserError(f"data set {own.name!r}: expected one of the views {expected}, found {found}; rename one.")
    for name in shared.views:
        if name in own.views:
            _expect_alike(name, shared, own)
    ids = torch.cat([shared.ids, own.ids])
    order = ids.argsort()
    there = {
        name: torch.cat([_there(shared, name), _there(own, name)])[order]
        for name in shared.views
        if name not in own.views or name in {**shared.present, **own.present}
    }
    return DataSet(
        shared.name,
        {name: torch.cat([values, _values(own, name, values)])[order] for name, values in shared.views.items()},
        torch.cat([shared.labels, own.labels])[order],
        shared.classes,
        present=there,
        rates=shared.rates,
        given_ids=ids[order],
        split=None if shared.split is None or own.split is None else torch.cat([shared.split, own.split])[order],
    )


def _chosen(key: str, said: str | None, names: tuple[str, ...]) -> str:
    """Return what a node says, or the only one that the experiment names."""
    if said is None and len(set(names)) > 1:
        found = f"the experiment names {', '.join(dict.fromkeys(names))}"
        raise UserError(f"node config: expected the key {key!r}, since {found}; add it.")
    if said is not None and said not in names:
        raise unknown(key, said, names, where="node config")
    return names[0] if said is None else said


def _divided(experiment: Experiment, key: str, own: DataSet) -> tuple[Tensor, Tensor]:
    """Return the ids of a client's samples to test on, as its data say or as drawn, and of those to train on."""
    if own.official_test is None:
        return local_split(experiment, key, own.ids)
    return own.ids[own.official_test], own.ids[~own.official_test]


def _expect_alike(name: str, shared: DataSet, own: DataSet) -> None:
    expected, found = (tuple(data.views[name].shape[1:]) for data in (shared, own))
    if expected != found:
        raise UserError(
            f"data set {own.name!r}: view {name!r}: expected samples of shape {expected} as the shared ones, found "
            f"{found}; convert them."
        )
    rates = [data.rates.get(name) for data in (shared, own)]
    if None not in rates and rates[0] != rates[1]:
        raise UserError(
            f"data set {own.name!r}: view {name!r}: expected {rates[0]:g} Hz as the shared samples, found "
            f"{rates[1]:g} Hz; resample it."
        )


def _there(data: DataSet, name: str) -> Tensor:
    return data.present.get(name, torch.full((len(data),), name in data.views))


def _values(own: DataSet, name: str, like: Tensor) -> Tensor:
    return own.views[name] if name in own.views else like.new_zeros(len(own), *like.shape[1:])
