"""View ensemble: how teachers are combined, and in which order clients teach and learn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from fedkd import simulate
from fedkd.data.federation import build
from strategies.view_ensemble import combine

TEMPERATURE, WARM_UP, DIGEST, REVISIT = 2.0, 4, 3, 2
MIXED = {"federation.views": ["image", "image@4", "image"]}


def combined(logits: np.ndarray, views: list[str], product: float) -> np.ndarray:
    """Multiply the views' mean probabilities, each to the power ``1/V + product * (1 - 1/V)``, and normalise."""
    names = sorted(set(views))
    scaled = np.ones(logits.shape[1:])
    for name in names:
        members = [z for z, view in zip(logits, views, strict=True) if view == name]
        rows = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in members]
        scaled *= np.mean(rows, axis=0) ** (1 / len(names) + product * (1 - 1 / len(names)))
    return scaled / scaled.sum(1, keepdims=True)


@pytest.mark.parametrize("product", [0.0, 0.3, 1.0])
def test_teachers_of_a_view_are_averaged_and_views_multiplied(product: float) -> None:
    source, views = np.random.default_rng(0), ["a", "b", "a", "c", "b"]
    logits = source.normal(scale=3, size=(5, 7, 4))
    found = combine(torch.from_numpy(logits), views, product)
    np.testing.assert_allclose(found.exp().numpy(), combined(logits, views, product), rtol=1e-12)


def test_a_view_that_does_not_know_changes_nothing_and_one_that_agrees_makes_sure() -> None:
    sure, unknowing = torch.tensor([[[3.0, 0.0, 0.0]]]), torch.zeros(1, 1, 3)
    alone = sure[0].softmax(1)
    torch.testing.assert_close(combine(torch.cat([sure, unknowing]), ["a", "b"], 1.0).exp(), alone)
    assert combine(torch.cat([sure, sure]), ["a", "b"], 1.0).exp()[0, 0] > alone[0, 0] + 0.05
    torch.testing.assert_close(combine(torch.cat([sure, sure]), ["a", "a"], 1.0).exp(), alone)


def test_a_view_whose_teachers_contradict_each_other_loses_its_weight_on_that_sample() -> None:
    eye = torch.tensor([[[2.0, 0.0, 0.0]]])
    agreeing = torch.tensor([[[0.0, 4.0, 0.0]], [[0.0, 4.0, 0.0]]])
    torn = torch.tensor([[[0.0, 4.0, 0.0]], [[4.0, 0.0, 0.0]]])
    views = ["eye", "ear", "ear"]
    assert combine(torch.cat([eye, agreeing]), views, 1.0).argmax() == 1
    assert combine(torch.cat([eye, torn]), views, 1.0).argmax() == 0


@pytest.mark.parametrize("share", [0.0, 0.3], ids=["plain", "calibrated"])
def test_clients_teach_what_their_labels_say_and_learn_afterwards(lab: SimpleNamespace, share: float) -> None:
    settings = {
        "calibration_share": share,
        "temperature": TEMPERATURE,
        "warm_up_epochs": WARM_UP,
        "digest_epochs": DIGEST,
        "revisit_epochs": REVISIT,
    }
    asked = lab.experiment("view_ensemble", {**MIXED, "strategies": {"view_ensemble": settings}})
    found, federation = simulate(asked), build(asked)
    students = {key: models["student"] for key, models in lab.start(asked).client_models.items()}
    views = [federation.holdings[key].view for key in students]
    said = None
    for _ in range(lab.rounds):
        predictions = []
        for key, student in students.items():
            public = federation.public(federation.holdings[key].view).inputs
            seen, unseen = lab.held_out(asked, key, federation.private(key), share)
            steps = WARM_UP if said is None else REVISIT
            lab.descend(lambda s=student, x=seen: cross_entropy(s(x.inputs), x.labels), [student], steps)
            fitted = lab.temperature(lab.outputs(student, unseen.inputs), unseen.labels) if len(unseen) else 1.0
            predictions.append(lab.outputs(student, public).numpy() / fitted)
            if said is not None:
                target = (said.log() / TEMPERATURE).softmax(1)
                lab.descend(
                    lambda s=student, x=public, t=target: (
                        TEMPERATURE**2 * kl_div((s(x) / TEMPERATURE).log_softmax(1), t, reduction="batchmean")
                    ),
                    [student],
                    DIGEST,
                )
        said = torch.from_numpy(combined(np.stack(predictions), views, 1.0))
    for key, student in students.items():
        assert lab.apart(student, found.client_models[key]["student"]) < 1e-9
