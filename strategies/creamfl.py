"""CreamFL: clients of several modalities send representations of public pairs, which the server weights by contrast."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, final

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize, softplus

from fedkd import losses
from fedkd.data.samples import Samples
from fedkd.knowledge import Bundle, Features, Knowledge
from fedkd.learner.requests import Batch, Networks
from fedkd.strategy import Client, ClientCard, MethodCard, Replies, Server, Strategy, StrategySettings

BLOCK = 1024
"""Pairs that are compared with all others at a time: memory grows with the pairs, not with their square."""


@final
class CreamFL(Strategy):
    """Multimodal federated learning via contrastive representation ensemble (Yu et al. 2023, arXiv:2302.08888)."""

    card = MethodCard(
        title="Multimodal Federated Learning via Contrastive Representation Ensemble",
        authors="Yu et al.",
        year=2023,
        arxiv="2302.08888",
        up=Features,
        down={"own": Features, "other": Features},
        traffic="M(4d + 8) up, 2M(4d + 8) down",
        needs_public_set=True,
        server_training=True,
        deviations=(
            "the server's own task is a contrast between views, and the labels if the public set has any; the paper's "
            "is retrieval, or questions about images",
            "the server learns after the clients' uploads, so nothing comes down before round one; the authors' code "
            "trains the server first",
            "whenever a client turns from labels to contrast or back, its optimiser starts afresh",
            "of several other views, a client contrasts with the mean of their representations; of none, with its own",
            "a client that holds several views sends one representation of all of them, as a view of its own",
        ),
    )

    class Settings(StrategySettings):
        """The contrasts, and the server's distillation."""

        temperature: float = Field(0.5, gt=0, description="T of the contrasts")
        inter: float = Field(0.5, ge=0, description="weight of the contrast with the other views")
        intra: float = Field(0.5, ge=0, description="weight of the contrast with the client's own last model")
        contrast: Literal["each", "last", "first"] = Field(
            "each", description="a client contrasts after each pass over its samples (the authors), the last, or before"
        )
        contrast_epochs: int = Field(1, ge=0, description="passes over the public subset each time")
        distil_weight: float = Field(0.3, ge=0, description="weight of the squared distance to the clients' ensemble")
        server_epochs: int = Field(5, ge=0, description="passes of the server over the public subset")

    settings: Settings

    # -- client half

    def client_round(self, client: Client, received: Bundle | None) -> Features:
        """Train on the labels, contrast with the global representations, and represent the public subset."""
        if received is None:
            client.fit(client.private, losses.cross_entropy)
        else:
            self.learn(client, received)
        public = client.next_public_subset
        return Features(public.ids, normalize(client.features(public)))

    def learn(self, client: Client, received: Bundle) -> None:
        """Train on the labels and contrast, in turns."""
        parts: Mapping[str, Any] = received.parts
        contrasted, when, passes = to_contrast(client, parts["own"]), self.settings.contrast, client.train.local_epochs
        contrast = partial(
            client.fit,
            contrasted,
            objective=self.client_objective,
            epochs=self.settings.contrast_epochs,
            frozen={"other": parts["other"].features.to(contrasted.inputs)},
        )
        if when == "first":
            contrast()
        for _ in range(passes if when == "each" else 1):
            client.fit(client.private, losses.cross_entropy, epochs=1 if when == "each" else passes)
            if when != "first":
                contrast()

    def client_objective(self, networks: Networks, batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        """``inter * NCE(z, all of the other views) + intra * NCE(z, {own view, last model})``."""
        represented = normalize(networks["student"].features(batch.inputs))
        temperature, targets = self.settings.temperature, batch.targets
        inter = losses.cross_entropy(represented @ frozen["other"].T / temperature, targets["pair"])
        kept = (represented * (targets["before"] - targets["own"])).sum(dim=1) / temperature
        return self.settings.inter * inter + self.settings.intra * softplus(kept).mean()

    # -- server half

    def server_model(self, client: ClientCard) -> str:
        """Return the clients' own architecture: one student for each view and architecture."""
        return client.architecture

    def server_round(self, server: Server, replies: Replies) -> None:
        """Weight the clients' representations by contrast, and distil them into the server's students."""
        known = self.representations(server)
        taught = dict(known)
        for view in {reply.client.view for reply in replies}:
            sent = torch.stack([reply.knowledge.features for reply in replies if reply.client.view == view])
            taught[view] = ensemble(sent.to(known[view]), other(known, view))
        for student, view in sorted(server.students.items()):
            self.distil(server, student, view, taught)
        learned = self.representations(server)
        server.state = {"ids": server.public(next(iter(learned))).ids}
        for view in learned:
            server.state |= {f"own {view}": learned[view], f"other {view}": other(learned, view)}

    def distil(self, server: Server, student: str, view: str, taught: Mapping[str, Tensor]) -> None:
        """Train one of the server's students on the representations of its view, against those of the others."""
        public, labelled = server.public(view), server.labelled_public(view)
        targets = {"pair": torch.arange(len(public), device=taught[view].device), "teacher": taught[view]}
        server.fit(
            public.with_targets(**targets),
            objective=self.server_objective,
            models=[student],
            epochs=self.settings.server_epochs,
            frozen={"other": other(taught, view)},
        )
        if labelled is not None:
            server.fit(labelled, losses.cross_entropy, models=[student], epochs=self.settings.server_epochs)

    def server_objective(self, networks: Networks, batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        """``NCE(z, all of the other views) + weight * MSE(z, the clients' ensemble)``."""
        [network] = networks.values()
        represented = normalize(network.features(batch.inputs))
        inter = losses.cross_entropy(represented @ frozen["other"].T / self.settings.temperature, batch.targets["pair"])
        return inter + self.settings.distil_weight * losses.hint(represented, batch.targets["teacher"])

    def representations(self, server: Server) -> dict[str, Tensor]:
        """Return the global representations of the public subset, by view: the mean over the view's students."""
        found: dict[str, list[Tensor]] = {}
        for student, view in sorted(server.students.items()):
            found.setdefault(view, []).append(normalize(server.features(server.public(view), student)))
        return {view: normalize(torch.stack(rows).mean(dim=0)) for view, rows in found.items()}

    def download(self, server: Server, client: ClientCard, common: Knowledge | None) -> Bundle | None:
        """Return the global representations of the client's view, and those of the others."""
        if not server.state:
            return None
        ids = server.state["ids"]
        return Bundle({name: Features(ids, server.state[f"{name} {client.view}"]) for name in ("own", "other")})


def to_contrast(client: Client, own: Features) -> Samples:
    """Return the public samples with their place among all, their global representation, and that of the last model.

    Call it before the client trains: the last model is the one that the round before has left.
    """
    public = client.public(own)
    places = torch.arange(len(public), device=public.inputs.device)
    before = normalize(client.features(public))
    return public.with_targets(pair=places, own=public.targets["teacher"], before=before)


def other(representations: Mapping[str, Tensor], view: str) -> Tensor:
    """Return the mean representation in the other views, shape ``(M, d)``; that of the only one if there are none."""
    others = [rows for name, rows in representations.items() if name != view] or [representations[view]]
    return normalize(torch.stack(others).mean(dim=0))


def ensemble(sent: Tensor, other: Tensor) -> Tensor:
    """Combine clients' representations: who tells a sample from all others in the other views counts for more.

    Args:
        sent: representations of ``K`` clients, shape ``(K, M, d)``.
        other: global representations of the same samples in the other views, shape ``(M, d)``.

    Returns:
        ``sum_k softmax_k(s_k) * sent_k`` with ``s_k(x) = log softmax_y(sent_k(x) . other(y))_x``, shape ``(M, d)``
        (section 4.1 of the paper).
    """
    weights = torch.stack([contrast_scores(rows, other) for rows in sent]).softmax(dim=0)
    return (weights[:, :, None] * sent).sum(dim=0)


def contrast_scores(rows: Tensor, other: Tensor) -> Tensor:
    """Return ``log softmax_y(rows(x) . other(y))_x``, shape ``(M,)``, in blocks of rows."""
    blocks = []
    for start in range(0, len(rows), BLOCK):
        compared = rows[start : start + BLOCK] @ other.T
        blocks.append(compared.log_softmax(dim=1).diagonal(start))
    return torch.cat(blocks)
