"""Every client trains alone: the lower bound of every comparison."""

from typing import final

from pydantic import Field

from fedkd.strategy import Client, MethodCard, Replies, Server, Strategy, StrategySettings


@final
class Local(Strategy):
    """No collaboration: nothing travels."""

    card = MethodCard(title="No collaboration (baseline)", authors="-", year=2017)

    class Settings(StrategySettings):
        """How long each client trains."""

        epochs: dict[str, int] = Field(
            {}, description="passes of single clients over the private shard, by client key; else train.local_epochs"
        )

    settings: Settings

    def client_round(self, client: Client, received: None) -> None:
        """Train on the private shard."""
        client.fit(client.private, client.task.loss, epochs=self.settings.epochs.get(client.card.key))

    def server_round(self, server: Server, replies: Replies) -> None:
        """Do nothing: there is nothing to combine."""
