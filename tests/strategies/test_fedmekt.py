"""FedMEKT by hand: the joint embedding, and who learns it when."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedkd import simulate
from fedkd.data.federation import build
from fedkd.data.samples import Samples
from strategies.fedmekt import weighted_mean

WEIGHT, TRANSFER, SERVER, PROBE = 0.7, 2, 3, 4


def test_the_joint_embedding_weights_clients_by_their_samples() -> None:
    rows, counts = np.random.default_rng(0).normal(size=(3, 4, 2)), np.array([5, 0, 15])
    found = weighted_mean(torch.from_numpy(rows), torch.from_numpy(counts))
    np.testing.assert_allclose(found.numpy(), 0.25 * rows[0] + 0.75 * rows[2], rtol=1e-12)
    alike = weighted_mean(torch.from_numpy(rows), torch.zeros(3, dtype=torch.int64))
    np.testing.assert_allclose(alike.numpy(), rows.mean(axis=0), rtol=1e-12)


def test_rounds_by_hand(lab: SimpleNamespace) -> None:
    settings = {"weight": WEIGHT, "transfer_epochs": TRANSFER, "server_epochs": SERVER}
    changes = {"federation.views": ["image", "image@4", "image"], "strategies": {"fedmekt": settings}}
    asked = lab.experiment("fedmekt", changes)
    found, federation, start = simulate(asked), build(asked), lab.start(asked)
    students = {key: models["student"] for key, models in start.client_models.items()}
    public = {view: federation.public(view).inputs for view in ("image", "image@4")}
    servers = {view: start.server_models[f"mlp+{view}"] for view in public}

    def distance(module: nn.Module, view: str, joint: Tensor) -> Tensor:
        return WEIGHT * (module.features(public[view]) - joint).square().mean()

    said = None
    for _ in range(lab.rounds):
        sent, counts = [], []
        for key, student in students.items():
            view, own = federation.holdings[key].view, federation.private(key)
            if said is not None:
                lab.descend(partial(distance, student, view, said), [student], TRANSFER)
            lab.descend(lambda s=student, x=own: cross_entropy(s(x.inputs), x.labels), [student], lab.epochs)
            sent.append(student.features(public[view]).detach().numpy())
            counts.append(len(own))
        joint = torch.from_numpy(np.average(sent, axis=0, weights=counts))
        for view, server in servers.items():
            lab.descend(partial(distance, server, view, joint), [server], SERVER)
        said = torch.stack([server.features(public[view]).detach() for view, server in servers.items()]).mean(0)
    for key, student in students.items():
        assert lab.apart(student, found.client_models[key]["student"]) < 1e-9
    for view, server in servers.items():
        assert lab.apart(server, found.server_models[f"mlp+{view}"]) < 1e-9
    one = 40 * (16 * 8 + 8)  # bytes of float64 features of width 16, and int64 ids, of 40 public samples
    assert [record["bytes_up"] for record in found.rounds] == [{"Features": 3 * one}] * lab.rounds
    assert found.rounds[1]["bytes_down"] == {"Features": 3 * one}


def test_with_public_labels_the_servers_heads_are_fitted_and_the_encoders_left_alone(lab: SimpleNamespace) -> None:
    changes = {"federation.views": ["image", "image@4", "image"], "rounds": 1}
    settings = {"server_epochs": SERVER, "probe_epochs": PROBE}
    unlabelled = lab.experiment("fedmekt", {**changes, "strategies": {"fedmekt": settings}})
    labelled = unlabelled.changed(**{"data.public_labels": True})
    before, after, federation = simulate(unlabelled), simulate(labelled), build(labelled)
    for view in ("image", "image@4"):
        server, found = before.server_models[f"mlp+{view}"], after.server_models[f"mlp+{view}"]
        public = federation.labelled_public(view)
        assert public is not None
        assert lab.apart(server, found) > 1e-4
        fit_head(lab, server, public)
        assert lab.apart(server, found) < 1e-12


def fit_head(lab: SimpleNamespace, server: Any, public: Samples) -> None:
    features = server.features(public.inputs).detach()
    lab.descend(lambda: cross_entropy(server.head(features), public.labels), [server.head], PROBE)
