"""Federated CQKD: who teaches, calibrated how, and who learns."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from fedkd import simulate
from fedkd.data.federation import build
from fedkd.errors import UserError

TEMPERATURE, DISTIL = 2.0, 3
MIXED = {"federation.views": ["image", "image@4", "image"]}


@pytest.mark.parametrize(
    ("teachers", "share"),
    [(None, 0.0), ("image", 0.0), ("image", 0.3)],
    ids=["all teach", "only the full resolution teaches", "and is calibrated"],
)
def test_who_teaches_and_who_learns(lab: SimpleNamespace, teachers: str | None, share: float) -> None:
    settings = {"calibration_share": share, "temperature": TEMPERATURE, "distil_epochs": DISTIL}
    asked = lab.experiment("fedcqkd", {**MIXED, "strategies": {"fedcqkd": settings}})
    if teachers:
        asked = asked.changed(**{"strategies.fedcqkd.teachers": teachers})
    found, federation = simulate(asked), build(asked)
    students = {key: models["student"] for key, models in lab.start(asked).client_models.items()}
    said = None
    for _ in range(lab.rounds):
        predictions = []
        for key, student in students.items():
            view = federation.holdings[key].view
            public, own = federation.public(view).inputs, federation.private(key)
            if said is not None and view != teachers:
                target = said.log() / TEMPERATURE
                lab.descend(
                    lambda s=student, x=public, z=target: (
                        TEMPERATURE**2
                        * kl_div((s(x) / TEMPERATURE).log_softmax(1), z.softmax(1), reduction="batchmean")
                    ),
                    [student],
                    DISTIL,
                )
            teaches = teachers in {None, view}
            seen, unseen = lab.held_out(asked, key, own, share if teaches else 0.0)
            lab.descend(lambda s=student, x=seen: cross_entropy(s(x.inputs), x.labels), [student], lab.epochs)
            if teaches:
                fitted = lab.temperature(lab.outputs(student, unseen.inputs), unseen.labels) if len(unseen) else 1.0
                predictions.append((lab.outputs(student, public) / fitted).softmax(1))
        said = torch.stack(predictions).mean(0)
    for key, student in students.items():
        assert lab.apart(student, found.client_models[key]["student"]) < 1e-9
    one = 40 * (10 * 8 + 8)  # bytes of float64 logits and int64 ids of 40 public samples
    count = 3 if teachers is None else 2
    assert [record["bytes_up"] for record in found.rounds] == [{"SoftLabels": count * one}] * lab.rounds
    assert found.rounds[1]["bytes_down"] == {"SoftLabels": 3 * one}


def test_teachers_that_nobody_is_are_refused(lab: SimpleNamespace) -> None:
    asked = lab.experiment("fedcqkd", {**MIXED, "strategies": {"fedcqkd": {"teachers": "image@7"}}})
    with pytest.raises(UserError, match=r"^strategies\.fedcqkd\.teachers: .*'image@7'.*image@4"):
        simulate(asked)


def test_without_a_teacher_in_a_round_nothing_is_sent(lab: SimpleNamespace) -> None:
    changes = {"federation.participation": 0.34, "seed": 0, "rounds": 10}  # one of three clients in each round
    asked = lab.experiment("fedcqkd", {**MIXED, **changes, "strategies": {"fedcqkd": {"teachers": "image"}}})
    found = simulate(asked)
    teaches = [bool(row["bytes_up"]) for row in found.rounds]
    assert [bool(row["bytes_down"]) for row in found.rounds] == [False, *teaches[:-1]]
    assert set(teaches) == {True, False}
