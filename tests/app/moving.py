"""Nodes that go, come and change while a run goes on."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict

from fedkd.app import flower, loop
from fedkd.app.client import HELLO
from fedkd.config import Experiment
from fedkd.engine.local import LocalGrid
from tests.app.nodes import RUN, Deployment, Mortal

VICTIM, OLD, NEW = "client-1", 999, 7
Configs = dict[int, dict[str, Any]]
Change = Callable[["Moving"], None]


class Moving(Mortal):
    """Nodes of which some go, come and change before a round; a message to one that is gone fails, as in Flower."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.changes: dict[int, list[Change]] = {}
        self.sent: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        for change in self.changes.pop(self.round + 1, []):
            change(self)
        return super().get_node_ids()

    @property
    def round(self) -> int:
        return max((number for phase, number in self.log if phase == "evaluate"), default=0)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies: list[Message] = []
        for message in messages:
            self.sent.append(message)
            there = message.metadata.dst_node_id in self.contexts
            gone = Error(code=5, reason="Error: Node Unavailable")
            replies += super().send_and_receive([message]) if there else [Message(gone, reply_to=message)]
        return replies

    def hellos(self) -> list[int]:
        """Return the nodes that were greeted after the first hello, in order."""
        greeted = [m.metadata.dst_node_id for m in self.sent if m.metadata.message_type == HELLO]
        return greeted[3:]


def leave(node: int) -> Change:
    def change(nodes: Moving) -> None:
        nodes.contexts.pop(node)

    return change


def come(node: int, config: Mapping[str, Any]) -> Change:
    def change(nodes: Moving) -> None:
        flower._client_side.cache_clear()
        settings = nodes.run_config
        nodes.contexts[node] = Context(RUN, node, dict(config), RecordDict(), settings)

    return change


def nodes_of(deployment: Deployment, changes: Mapping[int, list[Change]] = {}) -> Moving:
    flower._client_side.cache_clear()
    nodes = Moving(deployment.run_config(), deployment.configs)
    nodes.changes = {round_: list(then) for round_, then in changes.items()}
    return nodes


class Dropping(LocalGrid):
    """The simulation of a client that is silent in some rounds."""

    def __init__(self, experiment: Experiment, rounds: set[int]) -> None:
        super().__init__(experiment)
        self.rounds = {str(number) for number in rounds}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        heard = [
            message
            for message in messages
            if message.metadata.group_id not in self.rounds or self._keys[message.metadata.dst_node_id] != VICTIM
        ]
        return super().send_and_receive(heard)


def simulated(deployment: Deployment, silent: set[int]) -> list[tuple[Any, ...]]:
    finished = loop.run(Dropping(deployment.simulated, silent), deployment.simulated)
    return outcome([record.to_json() for record in finished.rounds])


def outcome(rows: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Return what cannot depend on where a client's node is."""
    return [(row["digest"], row["participants"], row["metrics"]) for row in rows]


def config_of(deployment: Deployment, key: str = VICTIM) -> dict[str, Any]:
    [config] = [dict(config) for config in deployment.configs.values() if config["client"] == key]
    return config
