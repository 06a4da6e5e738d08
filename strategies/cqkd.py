"""CQKD: a teacher at full resolution, calibrated by a temperature, teaches a student that sees a lower quality."""

from collections.abc import Mapping
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedkd import calibration, losses
from fedkd.learner.requests import Batch, Networks
from fedkd.strategy import Client, ClientCard, MethodCard, OnView, Replies, Server, Strategy, StrategySettings


@final
class CQKD(Strategy):
    """Cross-quality knowledge distillation (Cuk, Senge, Lauri & Frintrop 2023, arXiv:2304.07593), offline."""

    card = MethodCard(
        title="Teacher Network Calibration Improves Cross-Quality Knowledge Distillation",
        authors="Cuk et al.",
        year=2023,
        arxiv="2304.07593",
        deviations=(
            "every client teaches itself on its own samples; with one client this is the paper's method",
            "the teacher's temperature can be fitted on held-out samples, on top of the paper's fixed one",
            "of samples that lack the teacher's view, the student learns the labels only",
        ),
    )

    class Settings(StrategySettings):
        """The teacher, and how the student listens to it."""

        teacher: str | None = Field(None, description="architecture of the teacher; the student's if absent")
        teacher_epochs: int = Field(30, ge=0, description="set-up: passes of the teacher over its samples")
        alpha: float = Field(0.5, ge=0, le=1, description="alpha: weight of the teacher against the labels")
        temperature: float = Field(4.0, gt=0, description="T: softens both sides")
        calibration_share: float = Field(
            0.0, ge=0, lt=1, description="share of the samples on which the teacher's own temperature is fitted first"
        )

    settings: Settings

    # -- client half

    def client_models(self, client: ClientCard) -> Mapping[str, str | OnView]:
        """Return the student, and the teacher on the better view."""
        teacher = OnView(self.settings.teacher or client.architecture, client.teacher_view or client.view)
        return {"student": client.architecture, "teacher": teacher}

    def client_setup(self, client: Client) -> None:
        """Train the teacher on its view, and calibrate it on samples that it has not seen."""
        seen, unseen = client.held_out(self.settings.calibration_share, client.card.teacher_view)
        client.fit(seen, losses.cross_entropy, models=["teacher"], epochs=self.settings.teacher_epochs)
        if len(unseen):
            fitted = calibration.fit_temperature(client.logits(unseen, "teacher"), unseen.labels)
            client.state["temperature"] = torch.tensor(fitted, dtype=torch.float64)

    def client_round(self, client: Client, received: None) -> None:
        """Train the student on labels and teacher, of the same samples, each in its own view; then on other labels."""
        pairs, better = client.pairs(client.card.teacher_view or client.card.view)
        teacher = client.logits(better, "teacher") / float(client.state.get("temperature", 1.0))
        client.fit(pairs.with_targets(labels=pairs.labels, teacher=teacher), objective=self.objective)
        _, others = client.private.divide(pairs.ids)
        client.fit(others, losses.cross_entropy)

    def objective(self, networks: Networks, batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        """``(1 - alpha) * CE + alpha * T^2 * KL(teacher || student)``."""
        student, alpha = networks["student"](batch.inputs), self.settings.alpha
        taught = losses.kd(student, batch.targets["teacher"], temperature=self.settings.temperature)
        return (1 - alpha) * losses.cross_entropy(student, batch.labels) + alpha * taught

    # -- server half

    def server_round(self, server: Server, replies: Replies) -> None:
        """Do nothing: nothing travels."""
