"""CMKD by hand: a teacher of another view, pairs with and without labels, then the labels."""

from types import SimpleNamespace

import pytest
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from fedkd import simulate
from fedkd.data.federation import build

TEACHER, TRANSFER, TEMPERATURE = 3, 2, 3.0
VIEWS = {"federation.views": ["image@4"], "federation.teacher_view": "image"}


@pytest.mark.parametrize("weight", [0.0, 0.6], ids=["features", "features and logits"])
@pytest.mark.parametrize("missing", [0.0, 0.25], ids=["all pairs", "a quarter without the teacher's view"])
def test_the_teacher_supervises_on_pairs_and_the_labels_fine_tune(
    lab: SimpleNamespace, weight: float, missing: float
) -> None:
    settings = {
        "teacher_epochs": TEACHER,
        "transfer_epochs": TRANSFER,
        "logits_weight": weight,
        "temperature": TEMPERATURE,
    }
    asked = lab.experiment(
        "cmkd", {**VIEWS, "federation.missing": {"image": missing}, "strategies": {"cmkd": settings}}
    )
    found, federation = simulate(asked), build(asked)
    for key, models in lab.start(asked).client_models.items():
        student, teacher = models["student"], models["teacher"]
        better, own = federation.private_in(key, "image"), federation.private(key)
        assert len(better) == len(own) - round(missing * len(own))
        lab.descend(lambda t=teacher, b=better: cross_entropy(t(b.inputs), b.labels), [teacher], TEACHER)
        pairs = [
            (own.by_id(better.ids).inputs, better.inputs),
            (federation.public("image@4").inputs, federation.public("image").inputs),
        ]

        def transferred(x: Tensor, y: Tensor, s: nn.Module = student, t: nn.Module = teacher) -> Tensor:
            aim = t.features(y).detach()
            squares = (s.features(x) - aim).square().mean()
            inputs, target = (s(x) / TEMPERATURE).log_softmax(1), (t(y).detach() / TEMPERATURE).softmax(1)
            return squares + weight * TEMPERATURE**2 * kl_div(inputs, target, reduction="batchmean")

        for _ in range(lab.rounds):
            for x, y in pairs:
                lab.descend(lambda a=x, b=y: transferred(a, b), [student], TRANSFER)
            lab.descend(lambda s=student, x=own: cross_entropy(s(x.inputs), x.labels), [student], lab.epochs)
        assert lab.apart(teacher, found.client_models[key]["teacher"]) < 1e-12
        assert lab.apart(student, found.client_models[key]["student"]) < 1e-9
    assert [(record["bytes_up"], record["bytes_down"]) for record in found.rounds] == [({}, {})] * lab.rounds


def test_it_runs_without_public_pairs_and_on_one_view(lab: SimpleNamespace) -> None:
    asked = lab.experiment("cmkd", {"rounds": 1, "data.public": 0, "federation.views": ["image@4"]})
    for key, models in simulate(asked).client_models.items():
        assert [next(models[name].parameters()).shape[1] for name in ("student", "teacher")] == [4 * 4, 4 * 4]
        assert lab.apart(models["student"], lab.start(asked).client_models[key]["student"]) > 1e-3
