"""Who is dealt which samples, and which of its views it has of each."""

from collections.abc import Mapping
from typing import Any

import torch

from fedkd.config import Experiment, parse
from fedkd.data.holdings import Holding, deal, views_of
from fedkd.data.sources import DataSet

ROWS = 120


def dataset() -> DataSet:
    labels = torch.arange(ROWS) % 3
    views = {name: torch.zeros(ROWS, 2) for name in ("sound", "motion")}
    return DataSet("two views", views, labels, ("a", "b", "c"))


def experiment(**federation: Any) -> Experiment:
    values = {"clients": 2, "partition": "iid", "views": ["sound+motion"], "architectures": ["mlp"], **federation}
    return parse({"data": {"local_test": 0.1}, "federation": values}, {}, "test")


def dealt(**federation: Any) -> Mapping[str, Holding]:
    return deal(experiment(**federation), dataset(), torch.arange(ROWS))


def test_a_client_has_all_its_views_of_every_sample_unless_some_are_missing() -> None:
    for holding in dealt().values():
        assert len(holding.dealt) == len(holding.train) == 54
        assert holding.having.keys() == {"sound+motion", "sound", "motion"}
        assert holding.missing == {"sound+motion": 0, "sound": 0, "motion": 0}


def test_missing_views_are_counted_and_a_joined_view_needs_all_its_parts() -> None:
    for holding in dealt(missing={"sound": 0.5, "motion": 0.25}).values():
        assert holding.missing["sound"] == 27
        assert holding.missing["motion"] == 14  # a quarter of 54, to the even
        both = set(holding.having["sound"].tolist()) & set(holding.having["motion"].tolist())
        assert holding.train.tolist() == sorted(both) == holding.having["sound+motion"].tolist()


def test_other_clients_and_other_views_lack_nothing() -> None:
    holdings = dealt(views=["sound", "motion"], missing={"sound": 0.5})
    assert [holding.missing for holding in holdings.values()] == [{"sound": 27}, {"motion": 0}]


def test_what_is_missing_depends_on_the_client_and_the_seed() -> None:
    first = dealt(missing={"sound": 0.5})
    assert all(torch.equal(first[key].train, same.train) for key, same in dealt(missing={"sound": 0.5}).items())
    lacks = [set((holding.train - holding.train.min()).tolist()) for holding in first.values()]
    assert lacks[0] != lacks[1]


def test_the_teachers_view_is_held_while_training() -> None:
    held = dealt(views=["sound"], teacher_view="motion")["client-0"]
    assert held.having.keys() == {"sound", "motion"}


def test_the_views_of_some_clients_or_of_all() -> None:
    assert views_of(experiment()) == ("sound+motion", "sound", "motion")
    assert views_of(experiment(), "sound") == ("sound",)
    assert views_of(experiment(teacher_view="motion"), "sound") == ("sound", "motion")


def test_a_sample_that_the_data_set_has_no_view_of_is_missing() -> None:
    data = dataset()
    there = torch.arange(ROWS) % 2 == 0
    object.__setattr__(data, "present", {"sound": there})
    for holding in deal(experiment(), data, torch.arange(ROWS)).values():
        assert there[holding.train].all()
        assert there[holding.test].all()
        assert holding.missing["sound"] == int((~there[holding.having["motion"]]).sum())


def test_with_whole_owners_a_client_has_no_test_split() -> None:
    settings = experiment().changed(**{"data.split_by": "group"})
    assert all(not len(holding.test) for holding in deal(settings, dataset(), torch.arange(ROWS)).values())
