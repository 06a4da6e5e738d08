"""Nodes in this process: each is a ClientApp with a configuration of its own, and sees nothing but its own files."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from fedkd.app.flower import make_client_app, make_server_app
from fedkd.config import Experiment
from fedkd.flower_internals import ensure_task_identity

RUN = 815


class Nodes(Grid):
    """A grid of nodes, by the numbers that Flower might give them."""

    def __init__(self, run_config: Mapping[str, Any], configs: Mapping[int, Mapping[str, Any]]) -> None:
        ensure_task_identity()
        self.app = make_client_app()
        self.replies: dict[str, Message] = {}
        self.contexts = {
            node: Context(RUN, node, dict(config), RecordDict(), dict(run_config)) for node, config in configs.items()
        }

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return [self.app(message, self.contexts[message.metadata.dst_node_id]) for message in messages]

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            names.append(f"message-{len(self.replies)}")
            message.metadata.__dict__["_message_id"] = names[-1]
            self.replies[names[-1]] = next(iter(self.send_and_receive([message])))
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies[name] for name in message_ids]

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        raise NotImplementedError

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError


def read_configs(paths: Iterable[Path]) -> dict[int, dict[str, Any]]:
    """Return the nodes' configurations, by numbers whose order is not that of their names."""
    return {1000 - k: tomllib.loads(path.read_text(encoding="utf-8")) for k, path in enumerate(paths)}


def run_config(experiment: Experiment, out: Path) -> dict[str, Any]:
    return {"experiment": experiment.to_toml(), "overrides": "", "out": str(out)}


def run_on_nodes(experiment: Experiment, configs: Mapping[int, Mapping[str, Any]], out: Path) -> Nodes:
    """Run an experiment on nodes; the run folder is ``out``."""
    nodes = Nodes(run_config(experiment, out), configs)
    make_server_app()(nodes, Context(RUN, 0, {}, RecordDict(), run_config(experiment, out)))
    return nodes
