"""FedMD: clients of any architecture align their predictions on a public set, then revisit their own data."""

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedkd import ensemble, losses
from fedkd.knowledge import SoftLabels
from fedkd.strategy import Client, ClientCard, MethodCard, Replies, Server, Strategy, StrategySettings


@final
class FedMD(Strategy):
    """Heterogeneous federated learning via model distillation (Li & Wang 2019, arXiv:1910.03581, algorithm 1)."""

    card = MethodCard(
        title="FedMD: Heterogenous Federated Learning via Model Distillation",
        authors="Li & Wang",
        year=2019,
        arxiv="1910.03581",
        up=SoftLabels,
        down=SoftLabels,
        traffic="M(4C + 8) up, M(4C + 8) down",
        needs_public_set=True,
        deviations=(
            "the transfer phase on public labels is left out where the public set is unlabelled",
            "the digest loss is the authors' code's mean absolute difference of logits",
            "training runs for a fixed number of epochs; the authors' code stops early on the test set",
            "a round ends with the upload: one more revisit before the first, and no digest of the last consensus",
        ),
    )

    class Settings(StrategySettings):
        """How often each party looks at which samples."""

        transfer_epochs: int = Field(
            30, ge=0, description="set-up: passes over the labelled public set, then the private shard"
        )
        digest_epochs: int = Field(20, ge=0, description="passes over the public subset towards the consensus")
        digest_batch_size: int = Field(32, ge=1, description="samples per digest step")
        revisit_epochs: int = Field(1, ge=0, description="passes over the private shard")

    settings: Settings

    # -- client half

    def client_setup(self, client: Client) -> None:
        """Transfer learning: train on the labelled public set if there is one, then on the private shard."""
        if client.labelled_public is not None:
            client.fit(client.labelled_public, losses.cross_entropy, epochs=self.settings.transfer_epochs)
        client.fit(client.private, losses.cross_entropy, epochs=self.settings.transfer_epochs)

    def client_round(self, client: Client, received: SoftLabels | None) -> SoftLabels:
        """Digest the consensus, revisit the private shard, and predict the public subset."""
        if received is not None:
            client.fit(
                client.public(received),
                losses.logit_mae,
                epochs=self.settings.digest_epochs,
                batch_size=self.settings.digest_batch_size,
            )
        client.fit(client.private, losses.cross_entropy, epochs=self.settings.revisit_epochs)
        return client.predict(client.next_public_subset)

    # -- server half

    def server_round(self, server: Server, replies: Replies) -> SoftLabels:
        """Average the predictions to the consensus."""
        return server.soft_labels(ensemble.mean_logits(torch.stack([reply.knowledge.logits for reply in replies])))

    def ensemble(self, logits: Tensor, clients: Sequence[ClientCard]) -> Tensor:
        """Average the clients' logits."""
        return ensemble.mean_logits(logits)
