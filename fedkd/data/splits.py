"""The four splits: samples dealt out to clients, seen by all, to choose by, and to measure with."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fedkd import seeding
from fedkd.config import Experiment, Size
from fedkd.data.sources import DataSet
from fedkd.data.sources.dataset import SPLITS, UNLABELLED
from fedkd.errors import UserError


@dataclass(frozen=True)
class Splits:
    """The four disjoint splits, as sample ids, int64, each of shape ``(N,)``."""

    train: Tensor
    public: Tensor
    validation: Tensor
    test: Tensor


def split(experiment: Experiment, dataset: DataSet, complete: Tensor) -> Splits:
    """Divide the samples of a data set, or read how it divides them itself.

    Args:
        experiment: says how many are public, and how many to choose by and to measure with; and whether the clients
            bring their own samples, so that there need be none to deal out.
        dataset: all samples.
        complete: which samples have all views of the federation, bool, shape ``(N,)``: only these can be public, or
            measured with; the others are dealt out.

    Raises:
        UserError: there are fewer samples than the experiment takes away, or one that is not complete is among those
            that must be.
    """
    splits = _draw(experiment, dataset, complete) if dataset.split is None else _read(experiment, dataset, complete)
    if experiment.data.measure_on == "validation":
        if not len(splits.validation):
            what = "data.measure_on: expected samples of a validation set, found none"
            raise UserError(f"{what}; set data.validation above 0, or measure on 'test'.")
        splits = replace(splits, test=splits.validation, validation=splits.validation[:0])
    own = experiment.federation.partition == "own"
    if not len(splits.test) or not (len(splits.train) or own):
        found = f"found {len(splits.train)} and {len(splits.test)}"
        raise UserError(f"data: expected samples to train and to test on, {found}; take less away.")
    return splits


def commons(experiment: Experiment, dataset: DataSet, splits: Splits) -> tuple[DataSet, Splits]:
    """Return the samples that all parties of a real federation share, with their splits; training samples are no part.

    Args:
        experiment: says whether the public samples have labels; without, they lose those that they have.
        dataset: all samples; those of the result keep the ids that they have here.
        splits: of these.
    """
    ids = torch.cat([splits.public, splits.validation, splits.test]).sort().values
    shared = dataset.take(dataset.rows(ids))
    split = torch.zeros_like(ids)
    for number, name in enumerate(SPLITS):
        split[torch.isin(ids, getattr(splits, name))] = number
    hidden = (split == SPLITS.index("public")) & (not experiment.data.public_labels)
    labels = shared.labels.masked_fill(hidden, UNLABELLED)
    shared = replace(shared, labels=labels, split=split, official_test=None, groups=None)
    return shared, replace(splits, train=splits.train[:0])


def _read(experiment: Experiment, dataset: DataSet, complete: Tensor) -> Splits:
    """Return the splits that a data set names itself."""
    assert dataset.split is not None  # noqa: S101 - said to the type checker
    where = f"data set {dataset.name!r}"
    if lacking := int((~complete & (dataset.split != SPLITS.index("train"))).sum()):
        expected = "expected every view of the federation for all samples that are not for training"
        raise UserError(f"{where}: {expected}, found {lacking} that lack one; leave them out.")
    if experiment.data.public_labels and bool((dataset.labels == UNLABELLED).any()):
        raise UserError(f"{where}: data.public_labels: expected labels, found public samples without; set it to false.")
    return Splits(*(dataset.ids[dataset.split == number] for number in range(len(SPLITS))))


def _draw(experiment: Experiment, dataset: DataSet, complete: Tensor) -> Splits:
    settings, official = experiment.data, dataset.official_test
    order = torch.randperm(len(dataset.labels), generator=seeding.generator(experiment.seed, "splits"))
    groups = _groups(experiment, dataset)
    cut = partial(_cut, complete=complete, groups=groups)
    if official is not None:
        test, rest = order[(official & complete)[order]], order[~official[order]]
    else:
        test, rest = cut(order, settings.test, "data.test")
    validation, rest = cut(rest, settings.validation, "data.validation")
    public, train = cut(rest, settings.public, "data.public")
    return Splits(*(dataset.ids[rows.sort().values] for rows in (train, public, validation, test)))


def _groups(experiment: Experiment, dataset: DataSet) -> Tensor | None:
    """Return the natural owner of each sample where the splits must not divide what is one owner's."""
    if experiment.data.split_by == "sample":
        return None
    if dataset.groups is None:
        found = f"{dataset.name!r} does not say whose its samples are"
        raise UserError(f"data.split_by: expected a data set with natural owners, but {found}; set it to 'sample'.")
    return dataset.groups


def _cut(rows: Tensor, size: Size, key: str, complete: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """Take a share or a number of samples away, and return them and the rest, both in their order.

    Args:
        rows: shape ``(N,)``.
        size: share of those that can be taken, or number.
        key: the setting's name, for the message.
        complete: which samples can be taken, by row.
        groups: owner of each sample, by row: whole owners are taken, in the order in which they come, until there are
            enough; single samples without.
    """
    able = complete[rows]
    there = int(able.sum())
    count = round(size * there) if size < 1 else int(size)
    if count > there:
        raise UserError(f"{key}: expected at most {there} samples, which is what is left, found {size}.")
    if groups is None:
        taken = able & (able.cumsum(0) <= count)
        return rows[taken], rows[~taken]
    owners = list(dict.fromkeys(groups[rows].tolist()))
    chosen, found = torch.zeros(len(rows), dtype=torch.bool), 0
    while found < count:
        chosen |= groups[rows] == owners.pop(0)
        found = int((able & chosen).sum())
    return rows[able & chosen], rows[~chosen]
