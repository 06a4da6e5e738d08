"""View ensemble: teachers are calibrated against the other views, then combined by view and by sample."""

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from fedkd import calibration, ensemble, losses
from fedkd.knowledge import SoftLabels
from fedkd.strategy import Client, MethodCard, Replies, Server, Strategy, StrategySettings


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

        calibrate: bool = Field(True, description="fit each teacher's temperature to what the other views agree on")
        product: float = Field(
            1.0, ge=0, le=1, description="exponent of each further view: 1 takes views as independent given the class"
        )
        temperature: float = Field(1.0, gt=0, description="T of the distillation loss")
        digest_epochs: int = Field(10, ge=0, description="passes over the public subset")
        warm_up_epochs: int = Field(30, ge=0, description="set-up: passes over the private shard")
        revisit_epochs: int = Field(5, ge=0, description="passes over the private shard")

    settings: Settings

    # -- client half

    def client_setup(self, client: Client) -> None:
        """Learn the client's own labels before it teaches for the first time."""
        client.fit(client.private, losses.cross_entropy, epochs=self.settings.warm_up_epochs)

    def client_round(self, client: Client, received: SoftLabels | None) -> SoftLabels:
        """Learn from the ensemble, then from the labels, and predict the public subset."""
        if received is not None:
            client.fit(client.public(received), self.loss, epochs=self.settings.digest_epochs)
            client.fit(client.private, losses.cross_entropy, epochs=self.settings.revisit_epochs)
        return client.predict(client.next_public_subset)

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``T^2 * KL(teacher || student)``."""
        return losses.kd(student, teacher, temperature=self.settings.temperature)

    # -- server half

    def server_round(self, server: Server, replies: Replies) -> SoftLabels:
        """Calibrate the teachers, average those of each view by confidence, and multiply the views."""
        logits = torch.stack([reply.knowledge.logits for reply in replies]).double()
        views = [reply.client.view for reply in replies]
        if self.settings.calibrate:
            logits = logits / temperatures(logits, views)[:, None, None]
        return server.soft_labels(combine(logits, views, self.settings.product).to(replies[0].knowledge.logits))

    def ensemble(self, logits: Tensor) -> Tensor:
        """Average probabilities by confidence."""
        return ensemble.by_entropy(logits).clamp(min=torch.finfo(logits.dtype).tiny).log()


def temperatures(logits: Tensor, views: Sequence[str]) -> Tensor:
    """Return each teacher's temperature, fitted to the class that the teachers of the other views find most likely.

    A teacher that is sure where the other views disagree gets a high one. Where all look at one view, the others are
    the other teachers; one teacher alone keeps its logits.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        views: the view of each teacher, ``K`` names.

    Returns:
        Shape ``(K,)``.
    """
    fitted = torch.ones(len(views), dtype=logits.dtype)
    for number, view in enumerate(views):
        others = [k for k, other in enumerate(views) if other != view] or [k for k in range(len(views)) if k != number]
        if others:
            agreed = ensemble.mean_probabilities(logits[others]).argmax(dim=1)
            fitted[number] = calibration.fit_temperature(logits[number], agreed, low=0.1, high=10.0)
    return fitted


def combine(logits: Tensor, views: Sequence[str], product: float) -> Tensor:
    """Combine teachers: a mean in each view, weighted by confidence on each sample, and a product over the views.

    If views are independent given the class, and all classes equally frequent, the class has the probabilities
    ``prod_v p_v(c) / Z`` (naive Bayes): agreement makes sure, and a view that does not know changes nothing.

    Args:
        logits: outputs of ``K`` teachers, shape ``(K, N, C)``.
        views: the view of each teacher, ``K`` names.
        product: 1 for the product, 0 for the geometric mean of the views, in between for less than independence.

    Returns:
        Logarithms of probabilities, shape ``(N, C)``.
    """
    tiny = torch.finfo(logits.dtype).tiny
    names = list(dict.fromkeys(views))
    groups = [logits[[k for k, view in enumerate(views) if view == name]] for name in names]
    of_view = torch.stack([ensemble.by_entropy(group).clamp(min=tiny).log() for group in groups])
    share = 1 / len(names) + product * (1 - 1 / len(names))
    return (share * of_view.sum(dim=0)).log_softmax(dim=1)
