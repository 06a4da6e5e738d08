"""The federation: who holds which samples, the same for every process that builds it."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import seeding
from fedkd.config import Experiment, parse
from fedkd.data.federation import Federation, build
from fedkd.data.sources import DataSet
from fedkd.errors import UserError

ROWS, CLASSES = 200, 4
Make = Callable[..., Federation]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of the same 200 samples in two views; only one of them sets test samples apart and names owners."""
    folder = tmp_path_factory.mktemp("data")
    source = np.random.default_rng(0)
    arrays = {
        "labels": np.arange(ROWS) % CLASSES,
        "image": source.integers(0, 256, (ROWS, 4, 4), dtype=np.uint8),
        "sound": source.normal(size=(ROWS, 3)).astype(np.float32),
    }
    np.savez(folder / "plain.npz", **arrays)
    np.savez(folder / "official.npz", **arrays, is_test=np.arange(ROWS) < 40, groups=np.arange(ROWS) // 5 % 8)
    return folder


@pytest.fixture
def make(folder: Path) -> Make:
    """Return a function that builds the federation of an experiment with these changes."""

    def of(file: str = "plain", **changes: Any) -> Federation:
        plain = {"data": {"name": str(folder / f"{file}.npz")}, "federation": {"partition": "iid", "clients": 5}}
        return build(parse(plain, {name.replace("__", "."): value for name, value in changes.items()}, "test"))

    return of


def parts(federation: Federation) -> list[Tensor]:
    splits = federation.splits
    return [
        splits.public,
        splits.validation,
        splits.test,
        *(t for h in federation.holdings.values() for t in (h.train, h.test)),
    ]


def shard(federation: Federation, key: str) -> Tensor:
    held = federation.holdings[key]
    return torch.cat([held.train, held.test]).sort().values


def shards(federation: Federation) -> dict[str, tuple[list[int], list[int]]]:
    return {key: (held.train.tolist(), held.test.tolist()) for key, held in federation.holdings.items()}


# -- the four splits, and the shards


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, (40, 0, 40)),  # 20 % of 200 for the test, 25 % of the other 160 are public
        ({"data__public": 30, "data__validation": 10, "data__test": 50}, (30, 10, 50)),
        ({"data__public": 0, "data__validation": 0.5, "data__test": 0.1}, (0, 90, 20)),
        ({"data__public": 0.5, "file": "official"}, (80, 0, 40)),
        ({"data__test": 0.9, "file": "official"}, (40, 0, 40)),  # the publisher's test samples are the test set
        ({"data__local_test": 0}, (40, 0, 40)),
        ({"federation__partition": "dirichlet", "federation__min_samples": 1, "federation__alpha": 1}, (40, 0, 40)),
        ({"federation__partition": "pathological", "federation__classes_per_client": 2}, (40, 0, 40)),
        ({"federation__partition": "natural", "federation__clients": 8, "file": "official"}, (40, 0, 40)),
    ],
    ids=str,
)
def test_splits_are_disjoint_and_complete(make: Make, changes: dict[str, Any], sizes: tuple[int, int, int]) -> None:
    federation = make(**changes)
    splits = federation.splits
    assert (len(splits.public), len(splits.validation), len(splits.test)) == sizes
    dealt = torch.cat([ids for held in federation.holdings.values() for ids in (held.train, held.test)])
    assert sorted(dealt.tolist()) == splits.train.tolist()
    assert sorted(torch.cat(parts(federation)).tolist()) == list(range(ROWS))
    assert all(ids.tolist() == sorted(ids.tolist()) for ids in parts(federation))


def test_the_publishers_test_samples_are_the_test_set(make: Make) -> None:
    assert make("official").splits.test.tolist() == list(range(40))
    assert make("plain").splits.test.tolist() != list(range(40))


def test_natural_shards_are_the_owners_samples(make: Make) -> None:
    federation = make("official", federation__partition="natural", federation__clients=8)
    for number, held in enumerate(federation.holdings.values()):
        assert {row // 5 % 8 for row in (*held.train.tolist(), *held.test.tolist())} == {number}


def test_the_same_seed_gives_the_same_holdings_and_another_seed_others(make: Make) -> None:
    first = make(seed=1)
    build.__globals__["_build"].cache_clear()
    torch.manual_seed(5)
    again, other = make(seed=1), make(seed=2)
    assert again is not first
    assert shards(again) == shards(first)
    assert again.public_digest == first.public_digest
    for name in ("train", "public", "test"):
        assert torch.equal(getattr(again.splits, name), getattr(first.splits, name))
        assert not torch.equal(getattr(other.splits, name), getattr(first.splits, name))
    assert all(shards(other)[key] != held for key, held in shards(first).items())
    for key in first.holdings:  # not only the training samples change, but also who gets which of them
        assert not torch.equal(*(torch.searchsorted(one.splits.train, shard(one, key)) for one in (first, other)))


def test_who_trains_how_long_changes_nothing_about_who_holds_what(make: Make) -> None:
    other = make(rounds=9, train__lr=0.5, engine__workers=2, strategy="local")
    assert all(torch.equal(first, second) for first, second in zip(parts(other), parts(make()), strict=True))


def test_a_federation_is_built_once_per_process(make: Make) -> None:
    assert make(seed=3) is make(seed=3)
    assert make(seed=3, rounds=7, strategy="local") is make(seed=3)
    assert make(seed=3, train__dtype="float64") is not make(seed=3)


def test_clients_are_named_in_sorted_order(make: Make) -> None:
    assert list(make().holdings) == [f"client-{number}" for number in range(5)]
    names = list(make(federation__clients=11).holdings)
    assert names == [f"client-{number:02d}" for number in range(11)] == sorted(names)


def test_architectures_and_views_are_dealt_in_turn(make: Make) -> None:
    federation = make(federation__architectures=["mlp", "linear"], federation__views=["image", "sound", "image@2"])
    assert [held.architecture for held in federation.holdings.values()] == ["mlp", "linear", "mlp", "linear", "mlp"]
    assert [held.view for held in federation.holdings.values()] == ["image", "sound", "image@2", "image", "sound"]
    shapes = {view: federation.input_shape(view) for view in ("image", "sound", "image@2")}
    assert shapes == {"image": (1, 4, 4), "sound": (3,), "image@2": (1, 2, 2)}
    spec = federation.model_spec("mlp", "sound")
    assert (spec.architecture, spec.input_shape, spec.classes, spec.feature_width) == ("mlp", (3,), CLASSES, 64)


@pytest.mark.parametrize(
    ("clients", "share", "train", "test"),
    [(5, 0.2, 19, 5), (60, 0.2, 2, 0), (60, 0.5, 1, 1), (5, 0.0, 24, 0)],  # of 120 samples; 0.2 * 24 = 4.8
)
def test_a_tiny_shard_has_no_test_split(make: Make, clients: int, share: float, train: int, test: int) -> None:
    federation = make(federation__clients=clients, federation__min_samples=0, data__local_test=share)
    for key, held in federation.holdings.items():
        assert (len(held.train), len(held.test)) == (train, test)
        assert (len(federation.private(key)), len(federation.local_test(key))) == (train, test)


# -- what the parties see


def raw(federation: Federation, view: str) -> Tensor:
    return federation.dataset.views[view]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_samples_have_the_inputs_and_labels_of_their_ids(make: Make, dtype: str) -> None:
    federation = make(train__dtype=dtype, federation__views=["sound", "image"])
    for key, held in federation.holdings.items():
        for found, ids in ((federation.private(key), held.train), (federation.local_test(key), held.test)):
            assert torch.equal(found.ids, ids)
            assert torch.equal(found.inputs, raw(federation, held.view)[ids].to(getattr(torch, dtype)))
            assert found.labels.tolist() == [number % CLASSES for number in ids.tolist()]
            assert found.inputs.dtype == federation.like.dtype == getattr(torch, dtype)
    test = federation.test("sound")
    assert torch.equal(test.ids, federation.splits.test)
    assert test.labels.tolist() == [number % CLASSES for number in test.ids.tolist()]
    assert torch.equal(test.inputs, raw(federation, "sound")[test.ids].to(test.inputs))


def test_label_counts_are_those_of_each_clients_training_samples(make: Make) -> None:
    federation = make(federation__partition="dirichlet", federation__alpha=0.3, federation__min_samples=2)
    assert list(federation.label_counts) == list(federation.holdings)
    for key, held in federation.holdings.items():
        labels = [number % CLASSES for number in held.train.tolist()]
        assert federation.label_counts[key] == [labels.count(label) for label in range(CLASSES)]


def test_pooled_samples_are_all_shards_without_test_splits(make: Make) -> None:
    federation = make()
    pooled = federation.pooled("sound")
    assert sorted(pooled.ids.tolist()) == sorted(row for train, _ in shards(federation).values() for row in train)
    assert len(pooled) == 120 - 5 * 5
    assert pooled.labels.tolist() == [number % CLASSES for number in pooled.ids.tolist()]


@pytest.fixture
def partly(tmp_path: Path) -> Path:
    """Write 90 samples in two views: every third lacks ``left``, and every fifth of the others ``right``."""
    row = np.arange(90)
    left, right = row % 3 > 0, (row % 5 > 0) | (row % 3 == 0)
    views = {"left": np.outer(row + 1, [1.0, 2.0]), "right": np.outer(row + 1, [-1.0, 3.0])}
    path = tmp_path / "partly.npz"
    np.savez(path, labels=row % 2, **views, left_present=left, right_present=right)
    return path


@pytest.mark.parametrize("view", ["left", "right@noise1", "left+right"])
def test_pooled_samples_are_those_that_have_the_view(partly: Path, view: str) -> None:
    settings = {"data": {"name": str(partly)}, "federation": {"clients": 2, "views": ["left", "right"]}}
    federation = build(parse(settings, {"federation.partition": "iid", "data.local_test": 0.0}, "test"))
    ids = set(federation.splits.train.tolist())
    lacking = {"left": {i for i in ids if i % 3 == 0}, "right": {i for i in ids if i % 5 == 0 and i % 3}}
    expected = ids - set().union(*(lacked for name, lacked in lacking.items() if name in view))
    pooled = federation.pooled(view)
    assert sorted(pooled.ids.tolist()) == sorted(expected)
    assert 0 < len(pooled) < len(ids)
    assert pooled.inputs.any(dim=1).all()


def test_a_sample_of_which_a_client_lacks_a_view_is_not_pooled_in_it(make: Make) -> None:
    views = {"federation__views": ["image", "sound"], "federation__missing": {"sound": 0.25}}
    federation = make(**views, federation__clients=2, data__local_test=0.0)
    first, second = federation.holdings.values()
    lacking = set(second.dealt.tolist()) - set(second.train.tolist())
    assert len(lacking) == 15  # a quarter of 60
    everything = {*first.train.tolist(), *second.dealt.tolist()}
    assert set(federation.pooled("image").ids.tolist()) == everything
    for view in ("sound", "image+sound"):
        assert set(federation.pooled(view).ids.tolist()) == everything - lacking


def test_public_samples_have_no_labels(make: Make) -> None:
    federation = make()
    assert federation.public("sound").targets == {}
    assert federation.public("sound", federation.splits.public[:3]).targets == {}
    assert federation.labelled_public("sound") is None


def test_public_labels_must_be_asked_for(make: Make) -> None:
    federation = make(data__public_labels=True)
    labelled = federation.labelled_public("sound")
    assert labelled is not None
    assert labelled.ids.tolist() == federation.splits.public.tolist()
    assert labelled.labels.tolist() == [number % CLASSES for number in labelled.ids.tolist()]
    assert federation.public("sound").targets == {}


def test_public_samples_come_in_the_order_asked_for(make: Make) -> None:
    federation = make()
    ids = federation.splits.public[[7, 0, 3]]
    found = federation.public("image", ids)
    assert torch.equal(found.ids, ids)
    assert torch.equal(found.inputs, raw(federation, "image")[ids])
    with pytest.raises(UserError, match="some are not among"):
        federation.public("image", federation.splits.test[:1])


def test_all_that_ask_for_the_same_public_samples_share_them(make: Make) -> None:
    federation = make(data__public_per_round=10)
    first, second = federation.public_subset(1), federation.public_subset(2)
    found = federation.public("image", first)
    assert federation.public("image", first.clone()) is found
    assert torch.equal(federation.public("image", second).ids, second)
    assert torch.equal(federation.public("image", first).inputs, raw(federation, "image")[first])
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        found.inputs.add_(1)


@pytest.mark.parametrize("count", [0, 40, 41])
def test_the_public_subset_may_be_everything(make: Make, count: int) -> None:
    federation = make(data__public_per_round=count)
    assert all(torch.equal(federation.public_subset(round_), federation.splits.public) for round_ in range(3))


def test_the_public_subset_is_drawn_for_each_round_and_is_the_same_everywhere(make: Make) -> None:
    rounds = range(1, 30)
    here = make(data__public_per_round=10)
    drawn = {round_: here.public_subset(round_).tolist() for round_ in rounds}
    build.__globals__["_build"].cache_clear()
    elsewhere = make(data__public_per_round=10)
    assert {round_: elsewhere.public_subset(round_).tolist() for round_ in reversed(rounds)} == dict(
        reversed(drawn.items())
    )
    public = here.splits.public.tolist()
    for ids in drawn.values():
        assert len(set(ids)) == 10
        assert ids == sorted(ids)
        assert set(ids) <= set(public)
    assert len({tuple(ids) for ids in drawn.values()}) == len(rounds)
    assert {row for ids in drawn.values() for row in ids} == set(public)
    order = torch.randperm(40, generator=seeding.generator(0, "public subset", 7))[:10].tolist()
    assert drawn[7] == sorted(public[place] for place in order)
    assert make(data__public_per_round=10, data__public=40, seed=1).public_subset(7).tolist() != drawn[7]


# -- the public-set contract


def changed(federation: Federation, **changes: Any) -> Federation:
    return replace(federation, **changes, _cache={})


def data_set(federation: Federation, **changes: Any) -> DataSet:
    return replace(federation.dataset, **changes)


def test_the_digest_covers_ids_content_and_classes_of_the_public_set(make: Make) -> None:
    federation = make()
    splits, views = federation.splits, federation.dataset.views
    public = splits.public
    louder = {**views, "sound": views["sound"].index_add(0, public[3:4], torch.full((1, 3), 1e-6))}
    others = {
        "permuted": changed(federation, splits=replace(splits, public=public.flip(0))),
        "shorter": changed(federation, splits=replace(splits, public=public[1:])),
        "content": changed(federation, dataset=data_set(federation, views=louder)),
        "fewer views": changed(federation, dataset=data_set(federation, views={"sound": views["sound"]})),
        "class names": changed(federation, dataset=data_set(federation, classes=("a", "b", "c", "d"))),
        "more classes": changed(federation, dataset=data_set(federation, classes=(*federation.classes, "e"))),
    }
    digests = {name: other.public_digest for name, other in others.items()}
    assert len({federation.public_digest, *digests.values()}) == len(others) + 1, digests


def test_the_digest_tells_ids_apart_that_have_the_same_content(make: Make) -> None:
    federation = make()
    blank = data_set(federation, views={"sound": torch.zeros(ROWS, 3)})
    public = federation.splits.public
    twins = [public, public.flip(0), torch.cat([public[1:], federation.splits.train[:1]])]
    parties = [changed(federation, dataset=blank, splits=replace(federation.splits, public=ids)) for ids in twins]
    assert len({party.public_digest for party in parties}) == 3


def test_the_digest_covers_nothing_private(make: Make) -> None:
    federation = make()
    private = federation.splits.train[:1]
    views = {**federation.dataset.views, "sound": federation.dataset.views["sound"].index_fill(0, private, 9.0)}
    labels = torch.zeros_like(federation.dataset.labels)
    assert changed(federation, dataset=data_set(federation, views=views, labels=labels)).public_digest == (
        federation.public_digest
    )
    assert len(federation.public_digest) == len(hashlib.sha256().hexdigest())
    assert make(seed=8).public_digest != federation.public_digest


# -- what cannot be


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__public": 161}, "data.public: expected at most 160 samples, which is what is left, found 161"),
        ({"data__validation": 161}, "data.validation: expected at most 160 samples"),
        ({"data__test": 201}, "data.test: expected at most 200 samples"),
        ({"data__validation": 100, "data__public": 61}, "data.public: expected at most 60 samples"),
        ({"data__public": 160}, "data: expected samples to train and to test on, found 0 and 40; take less away"),
        ({"data__test": 200}, "data: expected samples to train and to test on, found 0 and 200"),
        ({"data__test": 0.001}, "data: expected samples to train and to test on, found 150 and 0"),
        ({"federation__clients": 121}, "partition 'iid': cannot deal 120 samples to clients = 121"),
        ({"federation__min_samples": 25}, "min_samples = 25: .*at most 24 samples as the fewest of each, found 25"),
        ({"federation__partition": "natural"}, "partition 'natural': expected a data set with groups"),
        ({"federation__partition": "natural", "federation__clients": 9, "file": "official"}, r"\(8\), found 9"),
        ({"federation__views": ["image", "imag"]}, "unknown view 'imag': did you mean 'image'"),
        ({"federation__views": ["image@5"]}, "view 'image@5': expected a size of at most 4"),
        ({"data__name": "digit"}, "unknown data set 'digit': did you mean 'digits'"),
    ],
    ids=str,
)
def test_an_impossible_federation_is_refused_with_a_reason(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(**changes)
    assert len(str(caught.value).splitlines()) == 1


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", labels=np.zeros(9, np.int64), x=np.zeros((9, 2)))
    with pytest.raises(UserError, match=r"data: expected two classes or more in '.*one.npz', found only '0'"):
        build(parse({"data": {"name": str(tmp_path / "one.npz")}}, {}, "test"))


def test_the_default_experiment_can_be_built() -> None:
    federation = build(Experiment())
    assert len(federation.holdings) == 10
    assert sorted(torch.cat(parts(federation)).tolist()) == list(range(1797))
    assert min(len(held.train) + len(held.test) for held in federation.holdings.values()) >= 10


@pytest.mark.parametrize("name", ["inputs", "labels"])
def test_what_all_share_cannot_be_changed_in_place(make: Make, name: str) -> None:
    federation = make()
    samples = federation.private("client-0")
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        getattr(samples, name).add_(1)
    own = samples.take(torch.arange(2))
    getattr(own, name).add_(1)
    assert torch.equal(getattr(federation.private("client-0"), name), getattr(samples, name))


# -- samples with ids of their own


def test_a_simulation_of_samples_with_ids_is_the_same_under_other_names(tmp_path: Path, folder: Path) -> None:
    with np.load(folder / "official.npz") as plain:
        arrays = dict(plain)
    order, ids = np.random.default_rng(1).permutation(ROWS), np.arange(ROWS) * 7 + 3
    np.savez(tmp_path / "named.npz", **{name: a[order] for name, a in {**arrays, "ids": ids}.items()})
    settings = {"data": {"public": 30, "validation": 10}, "federation": {"clients": 5, "views": ["image", "sound"]}}
    plain_, named = (
        build(parse(settings, {"data.name": str(path)}, "test"))
        for path in (folder / "official.npz", tmp_path / "named.npz")
    )

    assert [(part * 7 + 3).tolist() for part in parts(plain_)] == [part.tolist() for part in parts(named)]
    for key, held in plain_.holdings.items():
        assert torch.equal(named.private(key).inputs, plain_.private(key).inputs)
        assert torch.equal(named.private(key).labels, plain_.private(key).labels)
        assert torch.equal(named.labels(held.test * 7 + 3), plain_.labels(held.test))
    assert torch.equal(named.pooled("image").inputs, plain_.pooled("image").inputs)
    assert torch.equal(named.public("sound").inputs, plain_.public("sound").inputs)
    assert torch.equal(named.test("sound").labels, plain_.test("sound").labels)
    assert named.public_digest != plain_.public_digest
