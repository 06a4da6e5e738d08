"""Nodes in this process: each is a ClientApp with a configuration of its own, and sees nothing but its own files."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from fedkd import config, simulate
from fedkd.app import flower
from fedkd.app.flower import make_client_app, make_server_app
from fedkd.app.run_folder import read_lines
from fedkd.config import Experiment, parse
from fedkd.data.dividing import divide
from fedkd.flower_internals import ensure_task_identity

RUN = 815
SMALL: Mapping[str, Any] = {
    "strategy": "fedmd",
    "rounds": 3,
    "data": {"public": 40, "validation": 1300, "test": 40},
    "federation": {"clients": 3, "architectures": ("mlp",), "feature_width": 8},
    "train": {"local_epochs": 1},
    "strategies": {"fedmd": {"transfer_epochs": 1, "digest_epochs": 1}},
}


class Killed(BaseException):
    """Ends the server from outside."""


class Nodes(Grid):
    """A grid of nodes, by the numbers that Flower might give them."""

    def __init__(self, run_config: Mapping[str, Any], configs: Mapping[int, Mapping[str, Any]]) -> None:
        ensure_task_identity()
        self.app, self.run_config = make_client_app(), dict(run_config)
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


class Mortal(Nodes):
    """Nodes whose server dies with one of its exchanges: before the messages are sent, or with the replies in hand."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.log: list[tuple[str, int]] = []
        self.death: tuple[str, int, str] | None = None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        what = sent[0].metadata.message_type, int(sent[0].metadata.group_id)
        self.log.append(what)
        half = len(sent) // 2 if self.death == (*what, "among the replies") else len(sent)
        if self.death == (*what, "before"):
            raise Killed
        names = super().push_messages(sent[:half])
        if self.death is not None and self.death[:2] == what:
            raise Killed
        return names


class Deployment:
    """The files of a deployment, its nodes, and servers that come and go."""

    def __init__(self, folder: Path, changes: Mapping[str, Any] = {}) -> None:
        self.simulated = parse(SMALL, changes, "test")
        paths = divide(self.simulated, folder / "files")
        self.experiment = config.load(folder / "files" / "experiment.toml")
        self.configs = read_configs(paths.values())
        self.out, self.store = folder / "run", folder / "files" / "store"

    def nodes(self, experiment: Experiment | None = None) -> Mortal:
        """Start all nodes anew: they know what is on their disks."""
        flower._client_side.cache_clear()
        return Mortal(self.run_config(experiment), self.configs)

    def run_config(self, experiment: Experiment | None = None, out: Path | None = None) -> dict[str, Any]:
        """Return what Flower tells all apps."""
        return run_config(experiment or self.experiment, out or self.out)

    def serve(self, nodes: Nodes, out: Path | None = None, experiment: Experiment | None = None) -> None:
        """Run a ServerApp to its end."""
        make_server_app()(nodes, Context(RUN, 0, {}, RecordDict(), self.run_config(experiment, out)))

    def rows(self) -> list[dict[str, Any]]:
        """Return the records of the run, but for times."""
        return [{**row, "seconds": 0} for row in read_lines(self.out / "rounds.jsonl")]

    def expected(self) -> list[dict[str, Any]]:
        """Return the records of the simulation, which nobody has killed."""
        return [{**row, "seconds": 0} for row in simulate(self.simulated).rounds]
