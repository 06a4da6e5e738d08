"""View ensemble: teachers are calibrated against the other views, then combined by view and by sample."""

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedkd import calibration, ensemble, losses
from fedkd.knowledge import SoftLabels
from fedkd.numerics import logits_of
from fedkd.strategy import Client, ClientCard, MethodCard, Replies, Server, Strategy, StrategySettings


@final
class ViewEnsemble(Strategy):
    """Teachers that see the same samples differently: what two views agree on is worth more than what one repeats."""

    card = MethodCard(
        title="View ensemble",
        authors="fedkd",
        year=2026,
        up=SoftLabels,
        down=SoftLabels,
        traffic="M(4C + 8) up, M(4C + 8) down",
        needs_public_set=True,
    )

    class Settings(StrategySettings):
        """How teachers are combined, and how clients listen."""

        product: float = Field(
            1.0, ge=0, le=1, description="exponent of each further view: 1 takes views as independent given the class"
        )
        calibration_share: float = Field(
            0.0, ge=0, lt=1, description="share of a client's samples that its own temperature is fitted on"
        )
        temperature: float = Field(1.0, gt=0, description="T of the distillation loss")
        digest_epochs: int = Field(3, ge=0, description="passes over the public subset")
        warm_up_epochs: int = Field(30, ge=0, description="set-up: passes over the private shard")
        revisit_epochs: int = Field(5, ge=0, description="passes over the private shard")

    settings: Settings

    # -- client half

    def client_setup(self, client: Client) -> None:
        """Learn the client's own labels before it teaches for the first time."""
        seen, _ = client.held_out(self.settings.calibration_share)
        client.fit(seen, losses.cross_entropy, epochs=self.settings.warm_up_epochs)

    def client_round(self, client: Client, received: SoftLabels | None) -> SoftLabels:
        """Revisit the labels and predict the public subset, calibrated; only then learn from the ensemble.

        So teachers bring in what only their own labels say, and students end a round on what all of them know.
        """
        seen, unseen = client.held_out(self.settings.calibration_share)
        if received is not None:
            client.fit(seen, losses.cross_entropy, epochs=self.settings.revisit_epochs)
        fitted = calibration.fit_temperature(client.logits(unseen), unseen.labels) if len(unseen) else 1.0
        public = client.next_public_subset
        taught = SoftLabels(public.ids, client.logits(public) / fitted)
        if received is not None:
            client.fit(client.public(received), self.loss, epochs=self.settings.digest_epochs)
        return taught

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``T^2 * KL(teacher || student)``."""
        return losses.kd(student, teacher, temperature=self.settings.temperature)

    # -- server half

    def server_round(self, server: Server, replies: Replies) -> SoftLabels:
        """Average the teachers of each view, and multiply the views."""
        logits = torch.stack([reply.knowledge.logits for reply in replies])
        views = [reply.client.view for reply in replies]
        return server.soft_labels(combine(logits, views, self.settings.product))

    def ensemble(self, logits: Tensor, clients: Sequence[ClientCard]) -> Tensor:
        """Combine the clients as they teach: all look at the same test samples."""
        return combine(logits, [client.view for client in clients], self.settings.product)


def combine(logits: Tensor, views: Sequence[str], product: float) -> Tensor:
    """Combine teachers: the mean of the probabilities in each view, and a product over the views.

    Teachers of one view err together, and where they disagree, their mean is less sure: that is the view's weight on a
    sample. If views are independent given the class, and all classes equally frequent, the class has the probabilities
    ``prod_v p_v(c) / Z`` (naive Bayes): agreement makes sure, and a view that does not know changes nothing.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        views: the view of each teacher, ``K`` names.
        product: 1 for the product, 0 for the geometric mean of the views, in between for less than independence.

    Returns:
        Logarithms of probabilities, shape ``(N, C)``.
    """
    names = list(dict.fromkeys(views))
    members = [[k for k, view in enumerate(views) if view == name] for name in names]
    of_view = torch.stack([logits_of(ensemble.mean_probabilities(logits[numbers])) for numbers in members])
    share = 1 / len(names) + product * (1 - 1 / len(names))
    return (share * of_view.sum(dim=0)).log_softmax(dim=1)
