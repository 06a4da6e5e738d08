"""What one client's node makes of the commons and of its own samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedkd import seeding
from fedkd.config import Experiment, parse
from fedkd.data.federation import Federation, build
from fedkd.data.own import Owner, build_node
from fedkd.errors import UserError
from tests.data.sources.conftest import save
from tests.data.sources.test_recordings import written

CLASSES = np.array(["bird", "cat", "dog"])
SPLIT = np.array(["public", "public", "validation", "test", "test", "train"])
IDS = np.array([10, 20, 30, 40, 50, 60])
Make = Callable[..., Federation]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    path = save(
        tmp_path / "commons.npz",
        labels=np.array([-1, -1, 0, 1, 2, 0]),
        classes=CLASSES,
        ids=IDS,
        split=SPLIT,
        image=np.arange(24, dtype=np.float32).reshape(6, 1, 2, 2) / 24,
        audio=np.arange(24, dtype=np.float32).reshape(6, 1, 4),
        audio_rate=np.array(4.0),
    )
    federation = {"partition": "own", "clients": 2, "views": ["image", "audio"], "architectures": ["mlp", "cnn"]}
    return parse({"data": {"name": str(path), "local_test": 0.25}, "federation": federation}, {}, "test")


@pytest.fixture
def node(experiment: Experiment, tmp_path: Path) -> Make:
    """Return a function that writes a client's samples, and builds the federation as its node sees it."""

    def of(view: str | None = "image", architecture: str | None = "mlp", key: str = "a", **arrays: Any) -> Federation:
        held = {"labels": np.array([1, 0, 1, 1]), "classes": np.array(["cat", "dog"]), "image": images(4), **arrays}
        path = save(tmp_path / "mine.npz", **{name: array for name, array in held.items() if array is not None})
        return build_node(experiment, Owner(key, str(path), view, architecture))

    return of


def images(count: int) -> np.ndarray[Any, Any]:
    return np.linspace(0.1, 0.9, count * 4, dtype=np.float32).reshape(count, 1, 2, 2)


def test_the_server_holds_the_commons_and_nobodys_samples(experiment: Experiment) -> None:
    federation = build(experiment)

    assert federation.holdings == {}
    assert federation.dataset.ids.tolist() == [10, 20, 30, 40, 50]  # the training sample is nobody's
    assert federation.splits.public.tolist() == [10, 20]
    assert federation.test("audio").ids.tolist() == [40, 50]
    assert federation.test("audio").labels.tolist() == [1, 2]
    assert federation.public("image").inputs.flatten().tolist() == pytest.approx([k / 24 for k in range(8)])


def test_a_node_holds_the_commons_and_its_own_samples(experiment: Experiment, node: Make) -> None:
    mine = node()

    server = build(experiment)
    assert mine.public_digest == server.public_digest
    assert torch.equal(mine.test("image").inputs, server.test("image").inputs)
    [(key, holding)] = mine.holdings.items()
    assert (key, holding.architecture, holding.view) == ("a", "mlp", "image")
    ids = torch.cat([holding.train, holding.test]).sort().values
    assert ids.tolist() == [51, 52, 53, 54]  # behind the largest that is shared
    held = mine.samples(ids, "image")
    np.testing.assert_array_equal(held.inputs.numpy(), images(4))
    assert held.labels.tolist() == [2, 1, 2, 2]  # "cat" and "dog" by name
    order = torch.randperm(4, generator=seeding.generator(0, "local test", "a"))  # as a simulation draws it
    assert holding.test.tolist() == [51 + int(order[0])]
    assert mine.splits.train.tolist() == holding.train.tolist()


def test_samples_keep_the_ids_and_the_test_split_that_they_have(node: Make) -> None:
    holding = node(ids=np.array([15, 5, 99, 25]), is_test=np.array([0, 1, 1, 0])).holdings["a"]
    assert (holding.train.tolist(), holding.test.tolist()) == ([15, 25], [5, 99])


def test_a_view_that_a_client_lacks_is_missing_from_its_samples(node: Make) -> None:
    mine = node(view="image")
    assert mine.dataset.present["audio"].tolist() == [True] * 5 + [False] * 4
    assert mine.dataset.rates == {"audio": 4.0}
    with pytest.raises(UserError, match="a: expected a view that it holds"):
        mine.private_in("a", "audio")


def test_a_view_that_the_commons_lack_is_left_out(node: Make) -> None:
    assert sorted(node(more=np.ones((4, 2), np.float32)).dataset.views) == ["audio", "image"]


def test_samples_that_lack_the_clients_view_are_counted(node: Make) -> None:
    audio = np.ones((4, 1, 4), np.float32)
    there = np.array([True, False, True, True])
    is_test = np.array([False, False, False, True])
    holding = node(image_present=there, audio=audio, is_test=is_test).holdings["a"]
    assert holding.train.tolist() == [51, 53]
    assert holding.missing == {"image": 1}
    assert (len(holding.dealt), holding.test.tolist()) == (3, [54])


def test_a_built_in_data_set_serves_as_commons(tmp_path: Path) -> None:
    settings = {"data": {"public": 30, "test": 40}, "federation": {"partition": "own", "clients": 1}}
    server = build(parse(settings, {}, "test"))
    drawn = build(parse(settings, {"federation.partition": "iid"}, "test"))

    path = save(
        tmp_path / "x.npz", labels=np.array([7]), classes=np.arange(10), image=np.ones((1, 1, 8, 8), np.float32)
    )
    mine = build_node(parse(settings, {}, "test"), Owner("a", str(path)))

    assert len(server.dataset) == 70
    assert server.splits.public.tolist() == drawn.splits.public.tolist()
    assert server.public_digest == drawn.public_digest == mine.public_digest
    assert mine.holdings["a"].view == "image"


def test_a_node_may_hold_a_folder_of_recordings(experiment: Experiment, tmp_path: Path) -> None:
    for name in ("dog", "bird"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "a.wav").write_bytes(written([16384, -16384]))

    mine = build_node(experiment, Owner("a", str(tmp_path / "mine"), "audio", "mlp"))

    ids = torch.cat([mine.holdings["a"].train, mine.holdings["a"].test]).sort().values
    assert mine.samples(ids, "audio").inputs.tolist() == [[[0.5, -0.5, 0, 0]]] * 2
    assert mine.labels(ids).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"classes": np.array(["cat", "cow"])}, "data set 'mine': unknown class 'cow'"),
        ({"ids": np.array([1, 2, 3, 40])}, "expected ids that no shared sample has, found 1 that one has; renumber"),
        ({"labels": np.array([1, 0, -1, 1]), "split": np.array(["public"] * 4)}, "expected a label for every sample"),
        (
            {"image": np.ones((4, 1, 3, 3), np.float32)},
            r"view 'image': expected samples of shape \(1, 2, 2\) as the sh",
        ),
        ({"image": None, "photo": images(4)}, "expected one of the views image, audio, found photo"),
        (
            {"audio": np.ones((4, 1, 4), np.float32), "audio_rate": np.array(8.0)},
            "view 'audio': expected 4 Hz as the shared samples, found 8 Hz; resample it",
        ),
        ({"view": "audio"}, "data of a: expected samples that have audio, found none among 4; add them"),
        ({"view": "smell"}, "node config: unknown view 'smell'"),
        ({"architecture": "vgg"}, "node config: unknown architecture 'vgg'"),
        ({"view": None}, "node config: expected the key 'view', since the experiment names image, audio; add it"),
        ({"architecture": None}, "expected the key 'architecture', since the experiment names mlp, cnn"),
        *(({"key": key}, "client: expected small letters") for key in ("", "A", "a/b", "../a", "a b", "-a", "a" * 64)),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], problem: str, node: Make) -> None:
    with pytest.raises(UserError, match=problem):
        node(**changes)


@pytest.mark.parametrize("key", ["a", "0", "hospital-a", "a" * 63])
def test_names_of_clients(key: str, node: Make) -> None:
    assert list(node(key=key).holdings) == [key]
