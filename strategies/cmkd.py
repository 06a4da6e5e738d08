"""CMKD: a teacher of another modality supervises a student on pairs of samples, without labels."""

from collections.abc import Mapping
from typing import final

from pydantic import Field
from torch import Tensor

from fedkd import losses
from fedkd.learner.requests import Batch, Networks
from fedkd.strategy import Client, ClientCard, MethodCard, OnView, Replies, Server, Strategy, StrategySettings


@final
class CMKD(Strategy):
    """Cross modal distillation for supervision transfer (Gupta, Hoffman & Malik 2016, arXiv:1507.00448), offline."""

    card = MethodCard(
        title="Cross Modal Distillation for Supervision Transfer",
        authors="Gupta et al.",
        year=2016,
        arxiv="1507.00448",
        deviations=(
            "every client has its own teacher; with one client this is the paper's method",
            "the features are those before the head, of equal width, where the paper takes a layer in the middle",
            "the loss is a mean over the features; the authors' solver takes half their sum",
            "teacher and labels take turns in every round; the paper fine-tunes once, at the end",
        ),
    )

    class Settings(StrategySettings):
        """The teacher, and what the student takes over from it."""

        teacher: str | None = Field(None, description="architecture of the teacher; the student's if absent")
        teacher_epochs: int = Field(30, ge=0, description="set-up: passes of the teacher over its labelled samples")
        transfer_epochs: int = Field(10, ge=0, description="passes of the student over the pairs, without labels")
        logits_weight: float = Field(0.0, ge=0, description="weight of distillation of the logits, beside the features")
        temperature: float = Field(1.0, gt=0, description="T of the distillation of the logits")

    settings: Settings

    # -- client half

    def client_models(self, client: ClientCard) -> Mapping[str, str | OnView]:
        """Return the student, and the teacher on the other modality."""
        teacher = OnView(self.settings.teacher or client.architecture, client.teacher_view or client.view)
        return {"student": client.architecture, "teacher": teacher}

    def client_setup(self, client: Client) -> None:
        """Train the teacher where there are labels for its modality."""
        samples = client.private_in(client.card.teacher_view or client.card.view)
        client.fit(samples, losses.cross_entropy, models=["teacher"], epochs=self.settings.teacher_epochs)

    def client_round(self, client: Client, received: None) -> None:
        """Transfer the teacher's supervision on own pairs and on public ones, then fine-tune on the labels."""
        other = client.card.teacher_view or client.card.view
        public = client.next_public_subset, client.next_public_subset_in(other)
        for samples, paired in (client.pairs(other), public):
            said = {"features": client.features(paired, "teacher")}
            if self.settings.logits_weight:
                said["logits"] = client.logits(paired, "teacher")
            client.fit(samples.with_targets(**said), objective=self.objective, epochs=self.settings.transfer_epochs)
        client.fit(client.private, losses.cross_entropy)

    def objective(self, networks: Networks, batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        """``mean (f_student - f_teacher)^2 + lambda * T^2 * KL(teacher || student)``."""
        features = networks["student"].features(batch.inputs)
        transferred = losses.cross_modal_l2(features, batch.targets["features"])
        if not self.settings.logits_weight:
            return transferred
        logits, teacher = networks["student"].head(features), batch.targets["logits"]
        distilled = losses.kd(logits, teacher, temperature=self.settings.temperature)
        return transferred + self.settings.logits_weight * distilled

    # -- server half

    def server_round(self, server: Server, replies: Replies) -> None:
        """Do nothing: nothing travels."""
