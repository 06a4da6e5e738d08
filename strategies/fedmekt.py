"""FedMEKT: clients of several modalities and the server draw their embeddings of public samples together."""

from collections.abc import Mapping
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedkd import losses
from fedkd.knowledge import Features
from fedkd.learner.requests import Batch, Networks
from fedkd.strategy import Client, ClientCard, MethodCard, Replies, Server, Strategy, StrategySettings


@final
class FedMEKT(Strategy):
    """Distillation-based embedding knowledge transfer for multimodal federated learning (Le et al. 2023)."""

    card = MethodCard(
        title="FedMEKT: Distillation-based Embedding Knowledge Transfer for Multimodal Federated Learning",
        authors="Le et al.",
        year=2023,
        arxiv="2307.13214",
        up=Features,
        down=Features,
        traffic="M(4d + 8) up, M(4d + 8) down",
        needs_public_set=True,
        server_training=True,
        deviations=(
            "encoders learn from the private labels; the paper's autoencoders reconstruct unlabelled ones",
            "every client has a head of its own, and so have the server's students, trained only on public labels; the "
            "authors' code fits one probe for all views at the server",
            "one joint embedding for all views, of clients by number of samples, of the server's students by view: it "
            "is what draws the views together; in the authors' code each view has one of its own, all clients alike, "
            "and shared decoders draw them together",
            "the distance is the mean squared error of the last features; the authors' code takes a divergence, at two "
            "layers",
            "a client that holds several views sends one embedding of all of them; the authors' sends one of each",
        ),
    )

    class Settings(StrategySettings):
        """How the embeddings are drawn together."""

        weight: float = Field(1.0, ge=0, description="gamma: weight of the distance to the joint embedding")
        transfer_epochs: int = Field(5, ge=0, description="passes of a client over the public subset")
        server_epochs: int = Field(5, ge=0, description="passes of the server's students over the public subset")
        probe_epochs: int = Field(5, ge=0, description="passes of the server's heads over the public set, if labelled")

    settings: Settings

    # -- client half

    def client_round(self, client: Client, received: Features | None) -> Features:
        """Draw the embedding of the public subset to the joint one, learn the labels, and send the embedding."""
        if received is not None:
            client.fit(client.public(received), objective=self.objective, epochs=self.settings.transfer_epochs)
        client.fit(client.private, losses.cross_entropy)
        public = client.next_public_subset
        return Features(public.ids, client.features(public))

    def objective(self, networks: Networks, batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        """``gamma * MSE(f(x), joint embedding)``."""
        [network] = networks.values()
        return self.settings.weight * losses.hint(network.features(batch.inputs), batch.targets["teacher"])

    # -- server half

    def server_model(self, client: ClientCard) -> str:
        """Return the clients' own architecture: one encoder for each view and architecture."""
        return client.architecture

    def server_round(self, server: Server, replies: Replies) -> Features:
        """Teach the server's encoders the clients' joint embedding, and send theirs."""
        sent = torch.stack([reply.knowledge.features for reply in replies])
        joint = weighted_mean(sent, torch.tensor([reply.client.num_samples for reply in replies]))
        embeddings: dict[str, list[Tensor]] = {}
        for student, view in sorted(server.students.items()):
            public = server.public(view)
            taught = public.with_targets(teacher=joint.to(public.inputs))
            server.fit(taught, objective=self.objective, models=[student], epochs=self.settings.server_epochs)
            embeddings.setdefault(view, []).append(server.features(public, student).double())
            if (labelled := server.labelled_public(view)) is not None:
                server.fit(labelled, objective=probe, models=[student], epochs=self.settings.probe_epochs)
        of_views = torch.stack([torch.stack(rows).mean(dim=0) for rows in embeddings.values()])
        return Features(replies[0].knowledge.ids, of_views.mean(dim=0).to(sent))


def probe(networks: Networks, batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
    """``CE(head(f(x)), y)``, from which the encoder ``f`` learns nothing."""
    [network] = networks.values()
    return losses.cross_entropy(network.head(network.features(batch.inputs).detach()), batch.labels)


def weighted_mean(rows: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of rows ``(K, M, d)``, weighted by counts ``(K,)``; all alike if there are none."""
    shares = counts.double() if counts.sum() else torch.ones(len(counts), dtype=torch.float64)
    shares = (shares / shares.sum()).to(rows.device)
    return torch.einsum("k,kmd->md", shares, rows.double()).to(rows)
