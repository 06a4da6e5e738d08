"""FedAvg: clients train the shared weights on their own data, the server averages them.

With several architectures or views there is one average per cohort.
"""

from collections.abc import Iterator, Mapping
from typing import final

from fedkd.knowledge import Weights
from fedkd.strategy import Client, ClientCard, MethodCard, Reply, Server, Strategy


@final
class FedAvg(Strategy):
    """Federated averaging (McMahan et al. 2017, arXiv:1602.05629, algorithm 1)."""

    card = MethodCard(
        title="Communication-Efficient Learning of Deep Networks from Decentralized Data",
        authors="McMahan et al.",
        year=2017,
        arxiv="1602.05629",
        up=Weights,
        down=Weights,
        traffic="4P up, 4P down",
        deviations=("with several architectures or views, one average for each cohort",),
    )

    # -- client half

    def client_round(self, client: Client, received: Weights) -> Weights:
        """Train the received weights on the private shard."""
        client.load(received)
        client.fit(client.private, client.task.loss)
        return client.weights()

    # -- server half

    def server_model(self, client: ClientCard) -> str:
        """Return the clients' own architecture: one average for each cohort."""
        return client.architecture

    def collect(self, server: Server, replies: Iterator[Reply[Weights]]) -> Mapping[str, Weights]:
        """Average the weights of each cohort, by number of samples."""
        return server.averages(replies)

    def server_round(self, server: Server, averages: Mapping[str, Weights]) -> None:
        """Take over the averages."""
        for student, weights in averages.items():
            server.load(weights, student)
