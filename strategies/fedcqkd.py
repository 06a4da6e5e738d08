"""Federated CQKD: clients at full resolution teach, calibrated, through the public set; the others learn."""

from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedkd import calibration, ensemble, losses
from fedkd.knowledge import SoftLabels
from fedkd.strategy import Client, MethodCard, Replies, Server, Strategy, StrategySettings


@final
class FedCQKD(Strategy):
    """Cross-quality knowledge distillation between clients, after Cuk et al. 2023 (arXiv:2304.07593)."""

    card = MethodCard(
        title="Accelerating deep learning by cross-quality knowledge distillation",
        authors="Cuk et al.",
        year=2023,
        arxiv="2304.07593",
        up=SoftLabels,
        down=SoftLabels,
        traffic="M(4C + 8) up from a teacher, M(4C + 8) down",
        up_is_optional=True,
        needs_public_set=True,
        deviations=(
            "the paper has one teacher and its training samples; here clients teach each other on a public set",
            "labels and teachers speak one after the other, on private and on public samples, not in one loss",
        ),
    )

    class Settings(StrategySettings):
        """Who teaches, and how the others listen."""

        teacher_view: str | None = Field(
            None, description="view of the clients that teach; every client teaches if absent"
        )
        calibration_share: float = Field(
            0.2, ge=0, lt=1, description="share of a teacher's samples that its temperature is fitted on"
        )
        temperature: float = Field(4.0, gt=0, description="T: softens both sides")
        distil_epochs: int = Field(10, ge=0, description="passes over the public subset")

    settings: Settings

    # -- client half

    def client_round(self, client: Client, received: SoftLabels | None) -> SoftLabels | None:
        """Learn from the teachers, then from the labels; who teaches predicts the public subset, calibrated."""
        teaches = self.settings.teacher_view in {None, client.card.view}
        learns = self.settings.teacher_view != client.card.view
        if received is not None and learns:
            client.fit(client.public(received), self.loss, epochs=self.settings.distil_epochs)
        seen, unseen = client.held_out(self.settings.calibration_share if teaches else 0.0)
        client.fit(seen, losses.cross_entropy)
        if not teaches:
            return None
        fitted = calibration.fit_temperature(client.logits(unseen), unseen.labels) if len(unseen) else 1.0
        public = client.next_public_subset
        return SoftLabels(public.ids, client.logits(public) / fitted)

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``T^2 * KL(teacher || student)``."""
        return losses.kd(student, teacher, temperature=self.settings.temperature)

    # -- server half

    def server_round(self, server: Server, replies: Replies) -> SoftLabels | None:
        """Average the teachers' probabilities; without a teacher there is nothing to learn."""
        if not replies:
            return None
        logits = torch.stack([reply.knowledge.logits for reply in replies])
        mean = ensemble.mean_probabilities(logits)
        return server.soft_labels(mean.clamp(min=torch.finfo(mean.dtype).tiny).log())
