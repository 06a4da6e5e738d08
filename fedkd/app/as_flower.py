"""Hand one of our strategies to a foreign ServerApp as one of Flower's."""

from collections.abc import Iterable
from typing import Any, final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedkd.app.evaluation import evaluate_messages, take_evaluations
from fedkd.app.loop import wait_for_nodes
from fedkd.app.server import ServerSide
from fedkd.config import Experiment


def as_flower(experiment: Experiment) -> FlowerStrategy:
    """Return the experiment's strategy in Flower's form; its clients run ``fedkd.app.flower:client_app``.

    Example::

        @app.main()
        def main(grid, context):
            as_flower(experiment).start(grid, ArrayRecord(), num_rounds=experiment.rounds)

    Args:
        experiment: names the strategy, its settings and the federation.

    Raises:
        UserError: the experiment cannot be run.
    """
    return _Adapter(ServerSide(experiment))


@final
class _Adapter(FlowerStrategy):
    """Our server side behind Flower's five methods; what travels is ours, so Flower's arrays stay as they are."""

    def __init__(self, side: ServerSide) -> None:
        self._side = side
        self._sent: list[Message] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if not self._side.roster:
            nodes = wait_for_nodes(grid, self._side.experiment)
            self._side.welcome(grid.send_and_receive(self._side.hello_messages(nodes)))
        self._sent = self._side.train_messages(server_round)
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        record = self._side.take_replies(self._sent, replies)
        up, down = sum(record.bytes_up.values()), sum(record.bytes_down.values())
        return None, MetricRecord({"participants": len(record.participants), "bytes-up": up, "bytes-down": down})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._sent = evaluate_messages(self._side)
        return self._sent

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        metrics = take_evaluations(self._side, self._sent, replies).metrics
        flat: dict[str, Any] = {
            f"{who}/{name}": value for who, scores in metrics.items() if scores for name, value in scores.items()
        }
        return MetricRecord(flat)

    def summary(self) -> None:
        """Flower logs this at the start; the experiment file says it all."""
