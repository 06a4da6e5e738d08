"""FedDF: weights go up; the server averages them and then distils the ensemble of all clients into each average."""

from collections.abc import Sequence
from functools import partial
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedkd import ensemble, losses
from fedkd.knowledge import Weights
from fedkd.optimisers import Optimiser
from fedkd.strategy import Client, ClientCard, MethodCard, Replies, Server, Strategy, StrategySettings


@final
class FedDF(Strategy):
    """Ensemble distillation for robust model fusion (Lin et al. 2020, arXiv:2006.07242, algorithms 1 and 3)."""

    card = MethodCard(
        title="Ensemble Distillation for Robust Model Fusion in Federated Learning",
        authors="Lin et al.",
        year=2020,
        arxiv="2006.07242",
        up=Weights,
        down=Weights,
        traffic="4P up, 4P down",
        needs_public_set=True,
        server_training=True,
        deviations=(
            "a fixed number of distillation epochs at a constant rate, without early stopping on a validation set",
        ),
    )

    class Settings(StrategySettings):
        """How the server distils."""

        distil_epochs: int = Field(30, ge=0, description="passes of each server student over the public subset")
        distil_batch_size: int = Field(64, ge=1, description="samples per distillation step")
        distil_lr: float = Field(1e-3, gt=0, description="learning rate of the server's Adam")
        temperature: float = Field(1.0, gt=0, description="T of the distillation loss")

    settings: Settings

    # -- client half

    def client_round(self, client: Client, received: Weights) -> Weights:
        """Train the received weights on the private shard."""
        client.load(received)
        client.fit(client.private, losses.cross_entropy)
        return client.weights()

    # -- server half

    def server_model(self, client: ClientCard) -> str:
        """Return the clients' own architecture: one student for each cohort."""
        return client.architecture

    def server_round(self, server: Server, replies: Replies) -> None:
        """Average each cohort's weights, then distil the ensemble of all clients into each cohort's student."""
        trained = [reply for reply in replies if reply.client.num_samples]  # an empty shard teaches nothing
        if not trained:
            return
        teachers = [server.received_model(reply) for reply in trained]
        logits = server.predict(teachers, [server.public(reply.client.view) for reply in trained])
        sound = torch.isfinite(logits).all(dim=2).all(dim=1)  # absurd weights are finite, what they predict is not
        trained = [reply for reply, is_sound in zip(trained, sound.tolist(), strict=True) if is_sound]
        if not trained:
            return
        teacher = ensemble.mean_logits(logits[sound])
        server.average(trained)
        for student, view in server.students.items():
            server.fit(
                server.public(view).with_targets(teacher=teacher),
                partial(losses.kd, temperature=self.settings.temperature),
                models=[student],
                epochs=self.settings.distil_epochs,
                batch_size=self.settings.distil_batch_size,
                optimiser=Optimiser("adam", lr=self.settings.distil_lr),
            )

    def ensemble(self, logits: Tensor, clients: Sequence[ClientCard]) -> Tensor:
        """Average the teachers' logits."""
        return ensemble.mean_logits(logits)
