"""Partition: what each scheme promises, and how it fails."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from flwr_datasets.partitioner import IidPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fedkd.data.partition import SCHEMES, partition
from fedkd.errors import UserError


def deal(labels: Tensor, **changes: object) -> list[Tensor]:
    """Partition with settings that fit most tests, but for the changes."""
    asked: dict[str, Any] = {
        "clients": 5,
        "scheme": "iid",
        "seed": 0,
        "alpha": 0.5,
        "classes_per_client": 2,
        "min_samples": 0,
        "groups": None,
        **changes,
    }
    return partition(labels, **asked)


def histogram(labels: Tensor, shards: list[Tensor], classes: int) -> NDArray[np.int64]:
    """Samples of each class at each client, (clients, classes)."""
    return np.stack([np.bincount(labels[shard].numpy(), minlength=classes) for shard in shards])


LABELS = torch.tensor(np.random.default_rng(1).integers(0, 10, 600))
SORTED = LABELS.sort().values


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=12, max_size=60),
    clients=st.integers(1, 6),
    scheme=st.sampled_from(SCHEMES),
    seed=st.integers(0, 2**63 - 1),
    alpha=st.floats(1e-3, 1e3),
)
def test_shards_are_sorted_disjoint_and_repeatable(
    labels: list[int], clients: int, scheme: str, seed: int, alpha: float
) -> None:
    rows = torch.tensor(labels)
    groups = torch.arange(len(rows)) % clients
    asked: dict[str, object] = {"clients": clients, "scheme": scheme, "seed": seed, "alpha": alpha, "groups": groups}
    asked["classes_per_client"] = 1
    try:
        shards = deal(rows, **asked)
    except UserError:
        assert scheme == "pathological"  # a class rarer than the clients that want it; the others always succeed
        return
    dealt = torch.cat(shards).tolist()
    assert len(shards) == clients
    assert all(shard.dtype == torch.int64 and shard.tolist() == sorted(shard.tolist()) for shard in shards)
    if scheme == "pathological":
        assert len(set(dealt)) == len(dealt)
    else:
        assert sorted(dealt) == list(range(len(rows)))
    again = deal(rows, **asked)
    assert all(torch.equal(one, two) for one, two in zip(shards, again, strict=True))


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "pathological"])
def test_another_seed_deals_other_shards(scheme: str) -> None:
    one, two = (deal(LABELS, scheme=scheme, seed=seed) for seed in (0, 1))
    assert any(a.tolist() != b.tolist() for a, b in zip(one, two, strict=True))


def test_iid_shards_are_even_and_mixed_on_a_file_sorted_by_class() -> None:
    shards = deal(SORTED, clients=7)
    assert sorted(map(len, shards)) == [85, 85, 86, 86, 86, 86, 86]  # 600 = 7 x 85 + 5
    assert (histogram(SORTED, shards, 10) > 0).all()


@pytest.mark.parametrize(("rows", "clients"), [(100, 10), (103, 10), (7, 7), (50, 1)])
def test_iid_shards_are_those_of_the_library(rows: int, clients: int) -> None:
    library = IidPartitioner(clients)
    library.dataset = Dataset.from_dict({"row": np.random.default_rng(3).permutation(rows)})
    found = deal(torch.zeros(rows, dtype=torch.int64), clients=clients, scheme="iid", seed=3, min_samples=1)
    assert [shard.tolist() for shard in found] == [sorted(library.load_partition(k)["row"]) for k in range(clients)]


@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
def test_thousands_of_clients(scheme: str) -> None:
    labels = torch.arange(20_000) % 10
    shards = deal(labels, clients=2000, scheme=scheme, min_samples=2)
    assert len(shards) == 2000
    assert min(len(shard) for shard in shards) >= 2
    assert torch.equal(torch.cat(shards).sort().values, torch.arange(20_000))


def test_dirichlet_splits_each_class_by_the_proportions_drawn() -> None:
    clients, alpha, seed = 4, 0.3, 11
    rng = np.random.default_rng(seed)
    expected = np.zeros((clients, 10), dtype=np.int64)
    for label, count in enumerate(np.bincount(LABELS.numpy(), minlength=10)):
        ends = (np.cumsum(rng.dirichlet([alpha] * clients)) * count).astype(int)
        ends[-1] = count
        expected[:, label] = np.diff(ends, prepend=0)
    shards = deal(LABELS, clients=clients, scheme="dirichlet", alpha=alpha, seed=seed)
    np.testing.assert_array_equal(histogram(LABELS, shards, 10), expected)


def test_dirichlet_does_not_cut_in_the_order_of_the_file() -> None:
    one_class = torch.zeros(400, dtype=torch.int64)
    for shard in deal(one_class, clients=2, scheme="dirichlet", alpha=100.0):
        assert int(shard.max() - shard.min()) > 300


def test_a_larger_alpha_is_more_even() -> None:
    spread = [
        histogram(LABELS, deal(LABELS, scheme="dirichlet", alpha=alpha), 10).std(axis=0).mean()
        for alpha in (0.05, 1.0, 1000.0)
    ]
    assert spread[0] > spread[1] > spread[2]


def test_dirichlet_draws_again_until_shards_are_large_enough() -> None:
    shards = deal(LABELS, scheme="dirichlet", alpha=1.0, min_samples=60)
    assert min(map(len, shards)) >= 60


def test_pathological_clients_hold_few_classes_and_no_class_is_lost() -> None:
    for clients, classes in ((10, 1), (12, 2)):
        shards = deal(LABELS, clients=clients, scheme="pathological", classes_per_client=classes)
        counts = histogram(LABELS, shards, 10)
        assert (np.count_nonzero(counts, axis=1) == classes).all()
        np.testing.assert_array_equal(counts.sum(axis=0), np.bincount(LABELS.numpy(), minlength=10))


def test_natural_clients_are_the_sorted_groups() -> None:
    groups = torch.tensor([40, 7, 7, 40, 12])
    shards = deal(torch.zeros(5, dtype=torch.int64), clients=3, scheme="natural", groups=groups)
    assert [shard.tolist() for shard in shards] == [[1, 2], [4], [0, 3]]


def test_of_more_groups_than_clients_each_client_gets_whole_ones_in_turn() -> None:
    groups = torch.tensor([40, 7, 7, 40, 12])
    shards = deal(torch.zeros(5, dtype=torch.int64), clients=2, scheme="natural", groups=groups)
    assert [shard.tolist() for shard in shards] == [[0, 1, 2, 3], [4]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_library_is_silent(scheme: str, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deal(LABELS, scheme=scheme, alpha=1.0, min_samples=40, groups=torch.arange(600) % 5)
    assert capfd.readouterr() == ("", "")


def test_the_global_random_generators_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    state = np.random.get_state()[1].tolist()  # type: ignore[index]
    deal(LABELS, scheme="dirichlet")
    assert torch.equal(torch.rand(1), expected)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "dirichlt"}, "unknown partition scheme 'dirichlt': did you mean 'dirichlet'"),
        ({"clients": 0}, "Expected 1 to 600 clients, found 0"),
        ({"clients": 601}, "Expected 1 to 600 clients, found 601"),
        ({"seed": -1}, "cannot deal 600 samples"),
        ({"min_samples": 121}, "min_samples = 121: Expected at most 120 samples as the fewest of each, found 121"),
        ({"scheme": "dirichlet", "alpha": 0.0}, "found 0.0"),
        ({"scheme": "dirichlet", "alpha": float("nan")}, "found nan"),
        ({"scheme": "dirichlet", "alpha": 1e308}, "found 1e[+]308"),
        (
            {"scheme": "dirichlet", "alpha": 0.01, "clients": 50, "min_samples": 10},
            "clients = 50 with alpha = 0.01, .* min_samples = 10: .*attempts.* Raise alpha",
        ),
        ({"scheme": "pathological", "classes_per_client": 0}, "found 0"),
        ({"scheme": "pathological", "classes_per_client": 11}, "Lower classes_per_client"),
        ({"scheme": "natural"}, "expected a data set with groups, found none"),
        ({"scheme": "natural", "groups": torch.arange(3)}, "expected 600 groups, one per label, found 3"),
        ({"scheme": "natural", "groups": torch.arange(600) % 4}, r"at most .* \(4\), found 5; set clients = 4"),
        ({"scheme": "natural", "groups": torch.arange(600) % 5, "min_samples": 200}, "found 200. Lower min_samples"),
        (
            {"scheme": "natural", "groups": (torch.arange(600) - 515).clamp(min=0) // 20, "min_samples": 100},
            "Expected shards of 100 or more, found one of 5",
        ),
    ],
)  # fmt: skip
def test_errors_are_one_line_that_names_the_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        deal(LABELS, **changes)
    assert "\n" not in str(caught.value)
