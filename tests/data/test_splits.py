"""The four splits: disjoint, complete where they are measured with, and whole owners if asked for."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedkd.config import Experiment, parse
from fedkd.data.sources import DataSet
from fedkd.data.splits import Splits, commons, split
from fedkd.errors import UserError

ROWS, OWNERS = 120, 12


def dataset(*, official: bool = False, owned: bool = True) -> DataSet:
    return DataSet(
        "owned",
        {"sound": torch.zeros(ROWS, 2)},
        torch.arange(ROWS) % 3,
        ("a", "b", "c"),
        torch.arange(ROWS) < 30 if official else None,
        torch.arange(ROWS) % OWNERS if owned else None,
    )


def experiment(**data: Any) -> Experiment:
    return parse({"data": data}, {}, "test")


def everything(splits: Splits) -> list[Tensor]:
    return [splits.train, splits.public, splits.validation, splits.test]


ALL = torch.ones(ROWS, dtype=torch.bool)


@pytest.mark.parametrize("official", [False, True])
def test_samples_without_a_view_are_only_dealt_out(official: bool) -> None:
    complete = torch.arange(ROWS) % 4 > 0
    splits = split(experiment(public=20, validation=10, test=0.2), dataset(official=official), complete)
    assert [len(part) for part in (splits.public, splits.validation)] == [20, 10]
    assert len(splits.test) == int(complete[:30].sum()) if official else 18  # a fifth of the 90 complete ones
    assert all(complete[part].all() for part in (splits.public, splits.validation, splits.test))
    together = torch.cat(everything(splits))
    left_out = int((~complete[:30]).sum()) if official else 0  # the publisher's test samples are never trained on
    assert len(together) == len(together.unique()) == ROWS - left_out


def test_whole_owners_are_taken_until_there_are_enough() -> None:
    data = dataset()
    splits = split(experiment(public=25, validation=1, test=0.1, split_by="group"), data, ALL)
    assert [len(part) for part in (splits.public, splits.validation, splits.test)] == [30, 10, 20]  # owners of ten
    assert data.groups is not None
    owners = [set(data.groups[part].tolist()) for part in everything(splits)]
    assert sum(map(len, owners)) == len(set.union(*owners)) == OWNERS


def test_an_owners_incomplete_samples_are_taken_with_the_others_and_not_dealt_out() -> None:
    data = dataset()
    complete = torch.arange(ROWS) % 24 < 12  # of each owner every other sample
    splits = split(experiment(public=10, validation=0, test=10, split_by="group"), data, complete)
    assert data.groups is not None
    assert len(splits.public) == len(splits.test) == 10
    public, train = (set(data.groups[part].tolist()) for part in (splits.public, splits.train))
    assert not public & train


def test_without_owners_they_cannot_be_kept_together() -> None:
    with pytest.raises(UserError, match=r"data.split_by: expected a data set with natural owners, but 'owned'"):
        split(experiment(split_by="group"), dataset(owned=False), ALL)


def test_more_public_samples_than_complete_ones_are_refused() -> None:
    with pytest.raises(UserError, match=r"data.public: expected at most 48 samples, which is what is left, found 49"):
        split(experiment(public=49, test=0.2), dataset(), torch.arange(ROWS) < 60)


# --- splits that the data set names itself, and the commons


def named(split_: Tensor, labels: Tensor | None = None) -> DataSet:
    labels = torch.arange(len(split_)) % 3 if labels is None else labels
    ids = torch.arange(len(split_)) * 2 + 5
    return DataSet(
        "named", {"sound": torch.zeros(len(split_), 2)}, labels, ("a", "b", "c"), given_ids=ids, split=split_
    )


def test_splits_that_a_data_set_names_are_read() -> None:
    data = named(torch.tensor([3, 0, 1, 2, 1, 0]))

    splits = split(experiment(public=0.9, test=0.9), data, torch.ones(6, dtype=torch.bool))

    assert [part.tolist() for part in everything(splits)] == [[7, 15], [9, 13], [11], [5]]


@pytest.mark.parametrize(
    ("numbers", "changes", "problem"),
    [
        ([0, 0, 1], {}, "expected samples to train and to test on, found 2 and 0"),
        ([3, 1, 1], {}, "expected samples to train and to test on, found 0 and 1"),
    ],
)
def test_splits_that_leave_nothing_are_refused(numbers: list[int], changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        split(experiment(**changes), named(torch.tensor(numbers)), torch.ones(3, dtype=torch.bool))


def test_where_clients_bring_their_samples_none_need_be_there_to_train_on() -> None:
    own = parse({"federation": {"partition": "own"}}, {}, "test")
    splits = split(own, named(torch.tensor([3, 1, 1])), torch.ones(3, dtype=torch.bool))
    assert [len(part) for part in everything(splits)] == [0, 2, 0, 1]


def test_named_splits_are_held_against_views_and_labels() -> None:
    data = named(torch.tensor([0, 1, 3]))
    assert len(split(experiment(), data, torch.tensor([False, True, True])).train) == 1  # only dealt out
    with pytest.raises(UserError, match=r"expected every view of the federation for all samples .*, found 1 that lack"):
        split(experiment(), data, torch.tensor([True, False, True]))
    bare = named(torch.tensor([0, 1, 3]), torch.tensor([0, -1, 1]))
    with pytest.raises(UserError, match=r"data.public_labels: expected labels, found public samples without"):
        split(experiment(public_labels=True), bare, torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("labelled", [False, True])
def test_the_commons_are_all_but_the_training_samples(labelled: bool) -> None:
    data, settings = dataset(), experiment(public=20, validation=10, test=30, public_labels=labelled)
    splits = split(settings, data, ALL)

    shared, left = commons(settings, data, splits)

    assert len(shared) == 60
    assert not len(left.train)
    assert not set(shared.ids.tolist()) & set(splits.train.tolist())
    assert shared.labels[shared.rows(splits.test)].tolist() == (splits.test % 3).tolist()
    public = shared.labels[shared.rows(splits.public)].tolist()
    assert public == (splits.public % 3).tolist() if labelled else public == [-1] * 20
    own = settings.changed(**{"federation.partition": "own"})
    again = split(own, shared, torch.ones(60, dtype=torch.bool))
    assert [part.tolist() for part in everything(again)] == [part.tolist() for part in everything(left)]


@pytest.mark.parametrize("official", [False, True])
def test_the_validation_set_can_take_the_test_sets_place(official: bool) -> None:
    data = dataset(official=official)
    there = torch.ones(len(data), dtype=torch.bool)
    final = split(experiment(validation=3), data, there)
    chosen = split(experiment(validation=3, measure_on="validation"), data, there)
    assert torch.equal(chosen.test, final.validation)
    assert not len(chosen.validation)
    for name in ("train", "public"):
        assert torch.equal(getattr(chosen, name), getattr(final, name))
    assert not torch.isin(final.test, torch.cat([chosen.train, chosen.public, chosen.test])).any()


def test_without_a_validation_set_nothing_is_measured_on_it() -> None:
    data = dataset()
    with pytest.raises(UserError, match=r"^data.measure_on: .*set data.validation above 0"):
        split(experiment(measure_on="validation"), data, torch.ones(len(data), dtype=torch.bool))
