"""CreamFL: the weights of its ensemble, their memory, and two rounds by hand."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils._python_dispatch import TorchDispatchMode

from fedkd import simulate
from fedkd.data.federation import build
from strategies import creamfl

T, INTER, INTRA, CONTRAST, WEIGHT, SERVER = 0.5, 0.7, 0.4, 2, 0.3, 3
SETTINGS = {
    "temperature": T,
    "inter": INTER,
    "intra": INTRA,
    "contrast_epochs": CONTRAST,
    "distil_weight": WEIGHT,
    "server_epochs": SERVER,
}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def weighted(sent: np.ndarray, other: np.ndarray) -> np.ndarray:
    scores = []
    for rows in sent:
        similar = rows @ other.T
        scores.append(np.diag(similar) - np.log(np.exp(similar).sum(axis=1)))
    weights = np.exp(scores) / np.exp(scores).sum(axis=0)
    combined: np.ndarray = np.einsum("km,kmd->md", weights, sent)
    return combined


@pytest.mark.parametrize("block", [1024, 4], ids=["at once", "in blocks"])
def test_who_tells_a_sample_from_the_others_counts_for_more(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(creamfl, "BLOCK", block)
    source = np.random.default_rng(0)
    sent, other = unit(source.normal(size=(3, 11, 5))), unit(source.normal(size=(11, 5)))
    found = creamfl.ensemble(torch.from_numpy(sent), torch.from_numpy(other))
    np.testing.assert_allclose(found.numpy(), weighted(sent, other), rtol=1e-10)
    alike = creamfl.ensemble(torch.from_numpy(np.stack([other, -other])), torch.from_numpy(other)).numpy()
    assert (np.einsum("md,md->m", alike, other) > 0).all()


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that was made meanwhile."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.numel = max(self.numel, made.numel() if isinstance(made, Tensor) else 0)
        return made


def test_memory_grows_with_the_pairs_not_with_their_square() -> None:
    pairs = 5 * creamfl.BLOCK
    rows = normalize(torch.randn(pairs, 4, generator=torch.Generator().manual_seed(0)))
    with LargestTensor() as largest:
        creamfl.contrast_scores(rows, rows)
    assert largest.numel == creamfl.BLOCK * pairs


def turns(when: str, passes: int) -> list[str]:
    labels = ["label"] * passes
    by_order = {"each": ["label", "contrast"] * passes, "last": [*labels, "contrast"], "first": ["contrast", *labels]}
    return by_order[when]


MIXED = {
    "federation.clients": 6,
    "federation.views": ["image", "image@4", "image@2"],
    "federation.architectures": ["mlp", "linear"],
    "data.public_labels": True,
}


@pytest.mark.parametrize(
    ("when", "changes"),
    [
        ("each", {"federation.views": ["image", "image@4", "image"]}),
        ("last", {"federation.views": ["image"]}),
        ("first", MIXED),
    ],
    ids=["two views", "one view", "three views, two students of each, public labels"],
)
def test_two_rounds_by_hand(lab: SimpleNamespace, when: str, changes: dict[str, Any]) -> None:
    asked = lab.experiment("creamfl", {**changes, "strategies": {"creamfl": {**SETTINGS, "contrast": when}}})
    found, federation, start = simulate(asked), build(asked), lab.start(asked)
    views = {key: holding.view for key, holding in federation.holdings.items()}
    public = {view: federation.public(view).inputs for view in views.values()}
    pair = torch.arange(len(public["image"]))
    students = {key: models["student"] for key, models in start.client_models.items()}
    servers = dict(sorted(start.server_models.items()))

    def represented(module: nn.Module, view: str) -> Tensor:
        return normalize(module.features(public[view]))  # type: ignore[operator]

    def contrast(module: nn.Module, view: str, here: Tensor, there: Tensor, before: Tensor) -> Tensor:
        rows = represented(module, view)
        kept = torch.stack([(rows * here).sum(1), (rows * before).sum(1)], dim=1) / T
        return INTER * cross_entropy(rows @ there.T / T, pair) + INTRA * cross_entropy(kept, torch.zeros_like(pair))

    def distilled(module: nn.Module, view: str, here: Tensor, there: Tensor) -> Tensor:
        rows = represented(module, view)
        return cross_entropy(rows @ there.T / T, pair) + WEIGHT * (rows - here).square().mean()

    def labelled(module: nn.Module, view: str) -> Tensor:
        return cross_entropy(module(public[view]), federation.labels(federation.splits.public))

    def of_all() -> dict[str, Tensor]:
        rows: dict[str, list[Tensor]] = {view: [] for view in public}
        for name, server in servers.items():
            view = name.partition("+")[2]
            rows[view].append(represented(server, view).detach())
        return {view: normalize(torch.stack(found).mean(0)) for view, found in rows.items()}

    def others(of_views: dict[str, Tensor], view: str) -> Tensor:
        rows = [of_views[name] for name in of_views if name != view] if len(of_views) > 1 else [of_views[view]]
        return normalize(torch.stack(rows).mean(0))

    said = None
    for _ in range(lab.rounds):
        sent: dict[str, list[Tensor]] = {view: [] for view in public}
        for key, student in students.items():
            view, own = views[key], federation.private(key)
            before = represented(student, view).detach()  # of the last round's model, as the authors have it
            for turn in turns(when, lab.epochs) if said is not None else ["label"] * lab.epochs:
                if turn == "label":
                    lab.descend(lambda s=student, x=own: cross_entropy(s(x.inputs), x.labels), [student], 1)
                else:
                    here, there = said[view], others(said, view)
                    lab.descend(partial(contrast, student, view, here, there, before), [student], CONTRAST)
            sent[view].append(represented(student, view).detach())
        known = of_all()
        taught = {
            view: torch.from_numpy(weighted(torch.stack(rows).numpy(), others(known, view).numpy()))
            for view, rows in sent.items()
        }
        for name, server in servers.items():
            view = name.partition("+")[2]
            lab.descend(partial(distilled, server, view, taught[view], others(taught, view)), [server], SERVER)
            if asked.data.public_labels:
                lab.descend(partial(labelled, server, view), [server], SERVER)
        said = of_all()
    for key, student in students.items():
        assert lab.apart(student, found.client_models[key]["student"]) < 1e-8
    for name, server in servers.items():
        assert lab.apart(server, found.server_models[name]) < 1e-8
    one = 40 * (16 * 8 + 8)  # bytes of float64 features of width 16, and int64 ids, of 40 public samples
    assert [record["bytes_up"] for record in found.rounds] == [{"Features": len(students) * one}] * lab.rounds
    assert found.rounds[1]["bytes_down"] == {"Bundle": 2 * len(students) * one}
