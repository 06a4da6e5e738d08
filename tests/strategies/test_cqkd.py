"""CQKD against its loss, and the invariants that its public code violated: who sees which view, in which mode."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from fedkd import simulate
from fedkd.data.federation import build

TEACHER_EPOCHS, ALPHA, TEMPERATURE = 3, 0.25, 4.0
VIEWS = {"federation.views": ["image@4"], "federation.teacher_view": "image"}


def settings(**changes: float | str) -> dict[str, dict[str, float | str]]:
    own: dict[str, float | str] = {"teacher_epochs": TEACHER_EPOCHS, "alpha": ALPHA, "temperature": TEMPERATURE}
    return {"cqkd": own | changes}


def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    softened = kl_div((student / TEMPERATURE).log_softmax(1), (teacher / TEMPERATURE).softmax(1), reduction="batchmean")
    return (1 - ALPHA) * cross_entropy(student, labels) + ALPHA * TEMPERATURE**2 * softened


@pytest.mark.parametrize("missing", [0.0, 0.25], ids=["all pairs", "a quarter without the teacher's view"])
def test_the_student_learns_from_labels_and_from_the_teachers_view(lab: SimpleNamespace, missing: float) -> None:
    asked = lab.experiment(
        "cqkd",
        {**VIEWS, "strategies": settings(teacher="linear"), "federation.missing": {"image": missing}},
    )
    found, federation = simulate(asked), build(asked)
    for key, models in lab.start(asked).client_models.items():
        student, teacher = models["student"], models["teacher"]
        better, own = federation.private_in(key, "image"), federation.private(key)
        assert (better.inputs.shape[1:], own.inputs.shape[1:]) == ((1, 8, 8), (1, 4, 4))
        assert len(better) == len(own) - round(missing * len(own))
        lab.descend(lambda t=teacher, b=better: cross_entropy(t(b.inputs), b.labels), [teacher], TEACHER_EPOCHS)
        said, pairs = lab.outputs(teacher, better.inputs), own.by_id(better.ids)
        others = own.take((~torch.isin(own.ids, better.ids)).nonzero()[:, 0])
        for _ in range(lab.rounds):
            lab.descend(lambda s=student, x=pairs, z=said: loss(s(x.inputs), z, x.labels), [student], lab.epochs)
            if missing:
                lab.descend(lambda s=student, x=others: cross_entropy(s(x.inputs), x.labels), [student], lab.epochs)
        assert lab.apart(teacher, found.client_models[key]["teacher"]) < 1e-12
        assert lab.apart(student, found.client_models[key]["student"]) < 1e-9
    assert [(record["bytes_up"], record["bytes_down"]) for record in found.rounds] == [({}, {})] * lab.rounds


def test_the_teachers_temperature_is_fitted_where_it_was_not_trained(lab: SimpleNamespace) -> None:
    changes = {**VIEWS, "rounds": 1, "strategies": settings(calibration_share=0.3)}
    asked = lab.experiment("cqkd", changes)
    found, federation = simulate(asked), build(asked)
    for key, models in lab.start(asked).client_models.items():
        student, teacher = models["student"], models["teacher"]
        better, own = federation.private_in(key, "image"), federation.private(key)
        seen, unseen = lab.held_out(asked, key, better, 0.3)
        lab.descend(lambda t=teacher, b=seen: cross_entropy(t(b.inputs), b.labels), [teacher], TEACHER_EPOCHS)
        fitted = lab.temperature(lab.outputs(teacher, unseen.inputs), unseen.labels)
        said = lab.outputs(teacher, better.inputs) / fitted
        lab.descend(lambda s=student, x=own, z=said: loss(s(x.inputs), z, x.labels), [student], lab.epochs)
        assert lab.apart(teacher, found.client_models[key]["teacher"]) < 1e-12
        assert lab.apart(student, found.client_models[key]["student"]) < 1e-6


def test_the_teacher_stays_as_it_is_and_the_student_trains_in_training_mode(lab: SimpleNamespace) -> None:
    changes = {**VIEWS, "federation.architectures": ["cnn-bn"], "strategies": settings()}
    first, both = (simulate(lab.experiment("cqkd", {**changes, "rounds": rounds})) for rounds in (1, 2))
    for key, models in both.client_models.items():
        assert lab.apart(models["teacher"], first.client_models[key]["teacher"]) == 0  # buffers are among its state
        for name, steps in (("student", 2 * lab.epochs), ("teacher", TEACHER_EPOCHS)):
            counted = [value for key, value in models[name].state_dict().items() if key.endswith("num_batches_tracked")]
            assert {int(value) for value in counted} == {steps}


def test_without_a_view_of_its_own_the_teacher_sees_what_the_student_sees(lab: SimpleNamespace) -> None:
    changes = {"federation.views": ["image@4"], "rounds": 1, "strategies": settings(teacher="linear")}
    found = simulate(lab.experiment("cqkd", changes))
    for models in found.client_models.values():
        assert [next(models[name].parameters()).shape[1] for name in ("student", "teacher")] == [4 * 4, 4 * 4]
