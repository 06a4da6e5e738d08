"""The four splits: samples dealt out to clients, seen by all, to choose by, and to measure with."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedkd import seeding
from fedkd.config import Experiment, Size
from fedkd.data.sources import DataSet
from fedkd.errors import UserError


@dataclass(frozen=True)
class Splits:
    """The four disjoint splits, as sample ids, int64, each of shape ``(N,)``."""

    train: Tensor
    public: Tensor
    validation: Tensor
    test: Tensor


def split(experiment: Experiment, dataset: DataSet, complete: Tensor) -> Splits:
    """Divide the samples of a data set.

    Args:
        experiment: says how many are public, and how many to choose by and to measure with.
        dataset: all samples.
        complete: which samples have all views of the federation, bool, shape ``(N,)``: only these can be public, or
            measured with; the others are dealt out.

    Raises:
        UserError: there are fewer samples than the experiment takes away.
    """
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
    if not len(test) or not len(train):
        raise UserError(
            f"data: expected samples to train and to test on, found {len(train)} and {len(test)}; take less away."
        )
    return Splits(*(ids.sort().values for ids in (train, public, validation, test)))


def _groups(experiment: Experiment, dataset: DataSet) -> Tensor | None:
    """Return the natural owner of each sample where the splits must not divide what is one owner's."""
    if experiment.data.split_by == "sample":
        return None
    if dataset.groups is None:
        found = f"{dataset.name!r} does not say whose its samples are"
        raise UserError(f"data.split_by: expected a data set with natural owners, but {found}; set it to 'sample'.")
    return dataset.groups


def _cut(ids: Tensor, size: Size, key: str, complete: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """Take a share or a number of samples away, and return them and the rest, both in their order.

    Args:
        ids: shape ``(N,)``.
        size: share of those that can be taken, or number.
        key: the setting's name, for the message.
        complete: which samples can be taken, by id.
        groups: owner of each sample, by id: whole owners are taken, in the order in which they come, until there are
            enough; single samples without.
    """
    able = complete[ids]
    there = int(able.sum())
    count = round(size * there) if size < 1 else int(size)
    if count > there:
        raise UserError(f"{key}: expected at most {there} samples, which is what is left, found {size}.")
    if groups is None:
        taken = able & (able.cumsum(0) <= count)
        return ids[taken], ids[~taken]
    owners = list(dict.fromkeys(groups[ids].tolist()))
    chosen, found = torch.zeros(len(ids), dtype=torch.bool), 0
    while found < count:
        chosen |= groups[ids] == owners.pop(0)
        found = int((able & chosen).sum())
    return ids[able & chosen], ids[~chosen]
