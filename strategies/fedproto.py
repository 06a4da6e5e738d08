"""FedProto: clients exchange the mean feature of each class, and classify by the nearest one."""

from collections.abc import Mapping
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedkd import ensemble, losses
from fedkd.data.samples import Samples
from fedkd.knowledge import Prototypes
from fedkd.learner.requests import Batch, Networks
from fedkd.strategy import Client, MethodCard, Replies, Server, Strategy, StrategySettings


@final
class FedProto(Strategy):
    """Federated prototype learning across heterogeneous clients (Tan et al. 2022, arXiv:2105.00243, algorithm 1)."""

    card = MethodCard(
        title="FedProto: Federated Prototype Learning across Heterogeneous Clients",
        authors="Tan et al.",
        year=2022,
        arxiv="2105.00243",
        up=Prototypes,
        down=Prototypes,
        traffic="4Cd + 8C up, 4Cd + 8C down",
        deviations=(
            "prototypes are taken after local training, not while the weights still move",
            "a client that has not received prototypes yet predicts with its own head",
            "global prototypes are means over all samples of a class; the official code's are unweighted over clients",
            "the distance is the official code's mean squared error over the features",
        ),
    )

    class Settings(StrategySettings):
        """The weight of the prototype term."""

        weight: float = Field(1.0, ge=0, description="lambda: weight of the distance to the global prototypes")

    settings: Settings

    # -- client half

    def client_round(self, client: Client, received: Prototypes | None) -> Prototypes:
        """Train towards the global prototypes, then report one's own."""
        if received is None:
            client.fit(client.private, losses.cross_entropy)
        else:
            client.state = {"means": received.means, "present": received.present}
            client.fit(client.private, objective=self.objective, frozen=client.state)
        return Prototypes.of(client.features(client.private), client.private.labels, client.classes)

    def objective(self, networks: Networks, batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        """``CE + lambda * MSE(f(x), P_y)``."""
        features = networks["student"].features(batch.inputs)
        supervised = losses.cross_entropy(networks["student"].head(features), batch.labels)
        distance = losses.prototype(features, frozen["means"], frozen["present"], batch.labels)
        return supervised + self.settings.weight * distance

    def client_predict(self, client: Client, samples: Samples) -> Tensor:
        """Return minus the squared distance to each class's prototype."""
        if "means" not in client.state:
            return client.logits(samples)
        distances = torch.cdist(client.features(samples), client.state["means"]).square()
        # A class without prototype is farther than any other: finite, and never the nearest.
        farther = 2 * distances.max(dim=1, keepdim=True).values + 1
        return -torch.where(client.state["present"], distances, farther)

    # -- server half

    def server_round(self, server: Server, replies: Replies) -> Prototypes:
        """Average the prototypes of each class, weighted by their numbers of samples."""
        means = torch.stack([reply.knowledge.means for reply in replies])
        counts = torch.stack([reply.knowledge.counts for reply in replies])
        return Prototypes(*ensemble.weighted_class_means(means, counts))
