"""FedDF against the algorithm boxes of Lin et al. (2020): average per group, then AVGLOGITS distillation of each."""

from copy import deepcopy
from types import SimpleNamespace

import torch
from torch.nn.functional import cross_entropy, log_softmax

from fedkd import simulate
from fedkd.app.server import ServerSide
from fedkd.app.wire import to_arrays, to_tensors
from fedkd.data.federation import build
from fedkd.engine.local import LocalGrid

TEMPERATURE = 2.0
STEPS = 3
RATE = 0.01
ROUNDING = 1e-14 * RATE / 1e-8
"""How far equal steps of Adam may lie apart: where a gradient is next to nothing, Adam divides its rounding (some 1e-16
of what it was summed up from, by the kernels of this processor) by its eps, 1e-8."""


def divergence(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), sample by sample."""
    total = torch.zeros((), dtype=torch.float64)
    for t, s in zip(teacher / TEMPERATURE, student / TEMPERATURE, strict=True):
        p, q = t.exp() / t.exp().sum(), s.exp() / s.exp().sum()
        total = total + (p * (p / q).log()).sum()
    return TEMPERATURE**2 * total / len(teacher)


def test_two_rounds_of_the_algorithm_box(lab: SimpleNamespace) -> None:
    settings = {"distil_epochs": STEPS, "distil_lr": RATE, "temperature": TEMPERATURE, "distil_batch_size": 64}
    mixed = {
        "federation.clients": 4,
        "federation.architectures": ["cnn-bn", "mlp"],
        "federation.views": ["image", "image@4"],
        "data.public_per_round": 25,
        "strategies": {"feddf": settings},
    }
    asked = lab.experiment("feddf", mixed)
    found, federation = simulate(asked), build(asked)
    servers = {name: deepcopy(model) for name, model in lab.start(asked).server_models.items()}
    assert sorted(servers) == sorted(found.server_models) == ["cnn-bn+image", "mlp+image@4"]
    for round_ in (1, 2):
        students, teachers = {}, []
        for key, holding in federation.holdings.items():
            student = deepcopy(servers[f"{holding.architecture}+{holding.view}"])
            own, public = federation.private(key), federation.public(holding.view, federation.public_subset(round_))
            lab.descend(lambda s=student, x=own: cross_entropy(s(x.inputs), x.labels), [student], lab.epochs)
            teachers.append(lab.outputs(student, public.inputs))
            students[key] = student
        teacher = sum(teachers) / len(teachers)
        for name, server in servers.items():
            view = name.split("+")[1]
            members = [key for key, h in federation.holdings.items() if h.view == view]
            counts = [len(federation.private(key)) for key in members]
            server.load_state_dict(lab.average([students[key] for key in members], counts))
            inputs = federation.public(view, federation.public_subset(round_)).inputs
            lab.descend(lambda s=server, x=inputs, t=teacher: divergence(t, s(x)), [server], STEPS, adam=RATE)
    for name, server in servers.items():
        assert lab.apart(server, found.server_models[name]) < ROUNDING


def test_the_ensemble_that_is_evaluated_averages_logits(lab: SimpleNamespace) -> None:
    asked = lab.experiment("feddf")
    found, federation = simulate(asked), build(asked)
    test = federation.test("image")
    logits = sum(lab.outputs(models["student"], test.inputs) for models in found.client_models.values()) / 3
    nll = -log_softmax(logits, 1)[torch.arange(len(test)), test.labels].mean()
    scores = found.metrics["ensemble_global"]
    assert scores is not None
    assert abs(scores["accuracy"] - float((logits.argmax(1) == test.labels).double().mean())) < 1e-9
    assert abs(scores["nll"] - float(nll)) < 1e-6


def test_a_client_with_absurd_weights_teaches_nobody(lab: SimpleNamespace) -> None:
    asked = lab.experiment("feddf", {"rounds": 1})
    side, grid = ServerSide(asked), LocalGrid(asked)
    side.welcome(grid.send_and_receive(side.hello_messages(grid.get_node_ids())))
    messages = side.train_messages(1)
    replies = list(grid.send_and_receive(messages))
    first = to_tensors(replies[0].content["payload"])
    replies[0].content["payload"] = to_arrays({name: torch.full_like(t, 1e300) for name, t in first.items()})
    side.take_replies(messages, replies)
    without = ServerSide(asked)
    without.welcome(grid.send_and_receive(without.hello_messages(grid.get_node_ids())))
    without.take_replies(without.train_messages(1), replies[1:])
    for name, model in without.server.models.items():
        assert all(torch.equal(tensor, side.server.models[name].tensors[key]) for key, tensor in model.tensors.items())
