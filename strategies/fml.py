"""FML: each client trains a private model and a shared "meme" that teach each other; only the meme travels."""

from collections.abc import Iterator, Mapping
from typing import final

from pydantic import Field
from torch import Tensor

from fedkd import losses
from fedkd.knowledge import Weights
from fedkd.learner.requests import Batch, Networks
from fedkd.strategy import Client, ClientCard, MethodCard, Reply, Server, Strategy, StrategySettings


@final
class FML(Strategy):
    """Federated mutual learning (Shen et al. 2020, arXiv:2006.16765, algorithm 1)."""

    card = MethodCard(
        title="Federated Mutual Learning",
        authors="Shen et al.",
        year=2020,
        arxiv="2006.16765",
        up=Weights,
        down=Weights,
        traffic="4P up, 4P down, P of the meme",
        deviations=("with several views, one meme for each view",),
    )

    class Settings(StrategySettings):
        """The meme, and how much each model listens to the labels."""

        meme: str = Field("cnn", description="architecture of the shared model")
        alpha: float = Field(0.5, ge=0, le=1, description="alpha: weight of the labels for the private model")
        beta: float = Field(0.5, ge=0, le=1, description="beta: weight of the labels for the meme")

    settings: Settings

    # -- client half

    def client_models(self, client: ClientCard) -> Mapping[str, str]:
        """Return the private model and the meme."""
        return {"student": client.architecture, "meme": self.settings.meme}

    def client_round(self, client: Client, received: Weights) -> Weights:
        """Take over the meme, train both models together, and return the meme."""
        client.load(received, "meme")
        client.fit(client.private, objective=self.objective, models=["student", "meme"])
        return client.weights("meme")

    def objective(self, networks: Networks, batch: Batch, frozen: Mapping[str, Tensor]) -> Tensor:
        """Sum of both models' losses; each learns from the other's detached prediction."""
        private, meme = networks["student"](batch.inputs), networks["meme"](batch.inputs)
        alpha, beta = self.settings.alpha, self.settings.beta
        private_loss = alpha * losses.cross_entropy(private, batch.labels) + (1 - alpha) * losses.kd(private, meme)
        meme_loss = beta * losses.cross_entropy(meme, batch.labels) + (1 - beta) * losses.kd(meme, private)
        return private_loss + meme_loss

    # -- server half

    def server_model(self, client: ClientCard) -> str:
        """Return the meme: one for each view."""
        return self.settings.meme

    def collect(self, server: Server, replies: Iterator[Reply[Weights]]) -> Mapping[str, Weights]:
        """Average the memes, by number of samples."""
        return server.averages(replies)

    def server_round(self, server: Server, averages: Mapping[str, Weights]) -> None:
        """Take over the averages."""
        for student, weights in averages.items():
            server.load(weights, student)
