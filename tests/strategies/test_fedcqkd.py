"""Federated CQKD: who teaches, calibrated how, and who learns."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from fedkd import simulate
from fedkd.data.federation import build

TEMPERATURE, DISTIL = 2.0, 3
MIXED = {"federation.views": ["image", "image@4", "image"]}


@pytest.mark.parametrize(
    ("teacher_view", "share"),
    [(None, 0.0), ("image", 0.0), ("image", 0.3)],
    ids=["all teach", "only the full resolution teaches", "and is calibrated"],
)
def test_who_teaches_and_who_learns(lab: SimpleNamespace, teacher_view: str | None, share: float) -> None:
    settings = {"calibration_share": share, "temperature": TEMPERATURE, "distil_epochs": DISTIL}
    asked = lab.experiment("fedcqkd", {**MIXED, "strategies": {"fedcqkd": settings}})
    if teacher_view:
        asked = asked.changed(**{"strategies.fedcqkd.teacher_view": teacher_view})
    found, federation = simulate(asked), build(asked)
    students = {key: models["student"] for key, models in lab.start(asked).client_models.items()}
    said = None
    for _ in range(lab.rounds):
        predictions = []
        for key, student in students.items():
            view = federation.holdings[key].view
            public, own = federation.public(view).inputs, federation.private(key)
            if said is not None and view != teacher_view:
                target = said.log() / TEMPERATURE
                lab.descend(
                    lambda s=student, x=public, z=target: (
                        TEMPERATURE**2
                        * kl_div((s(x) / TEMPERATURE).log_softmax(1), z.softmax(1), reduction="batchmean")
                    ),
                    [student],
                    DISTIL,
                )
            teaches = teacher_view in {None, view}
            seen, unseen = lab.held_out(asked, key, own, share if teaches else 0.0)
            lab.descend(lambda s=student, x=seen: cross_entropy(s(x.inputs), x.labels), [student], lab.epochs)
            if teaches:
                fitted = lab.temperature(lab.outputs(student, unseen.inputs), unseen.labels) if len(unseen) else 1.0
                predictions.append((lab.outputs(student, public) / fitted).softmax(1))
        said = torch.stack(predictions).mean(0)
    for key, student in students.items():
        assert lab.apart(student, found.client_models[key]["student"]) < 1e-9
    one = 40 * (10 * 8 + 8)  # bytes of float64 logits and int64 ids of 40 public samples
    teachers = 3 if teacher_view is None else 2
    assert [record["bytes_up"] for record in found.rounds] == [{"SoftLabels": teachers * one}] * lab.rounds
    assert found.rounds[1]["bytes_down"] == {"SoftLabels": 3 * one}


def test_without_a_teacher_nothing_is_sent_and_everybody_trains_alone(lab: SimpleNamespace) -> None:
    settings = {"teacher_view": "image@7", "calibration_share": 0.0}
    found = simulate(lab.experiment("fedcqkd", {"strategies": {"fedcqkd": settings}}))
    alone = simulate(lab.experiment("local"))
    assert [(row["bytes_up"], row["bytes_down"], row["failed"]) for row in found.rounds] == [({}, {}, {})] * lab.rounds
    for key, models in found.client_models.items():
        assert lab.apart(models["student"], alone.client_models[key]["student"]) < 1e-12
