"""A node's own store: what it keeps of its client outlives its process, and is never mixed with another run's."""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fedkd import config, simulate
from fedkd.app import flower
from fedkd.app.run_folder import RunFolder
from fedkd.app.server import ServerSide
from fedkd.app.wire import header_of, pack
from fedkd.config import Experiment, parse
from fedkd.data.dividing import divide
from fedkd.errors import RunError, UserError
from tests.app.nodes import Nodes, read_configs, run_config

SMALL: Mapping[str, Any] = {
    "strategy": "fedmd",
    "rounds": 3,
    "data": {"public": 40, "validation": 1300, "test": 40},
    "federation": {"clients": 3, "architectures": ("mlp",), "feature_width": 8},
    "train": {"local_epochs": 1},
    "engine": {"evaluate_every": 0},
    "strategies": {"fedmd": {"transfer_epochs": 1, "digest_epochs": 1}},
}
VICTIM = "client-1"


@dataclass(frozen=True)
class Deployment:
    """The files of a deployment: its experiment, its nodes' configurations, and where they keep their states."""

    experiment: Experiment
    configs: dict[int, dict[str, Any]]
    store: Path
    folder: Path

    def nodes(self, flower_run: int = 1) -> Nodes:
        """Start all nodes anew, for a run that Flower gives this number."""
        flower._client_side.cache_clear()
        nodes = Nodes(run_config(self.experiment, self.folder / "run"), self.configs)
        for node, context in nodes.contexts.items():
            nodes.contexts[node] = Context(flower_run, node, context.node_config, RecordDict(), context.run_config)
        return nodes

    def server(self, run_id: str = "") -> ServerSide:
        return ServerSide(self.experiment, run_id)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    paths = divide(parse(SMALL, {}, "test"), tmp_path / "files")
    experiment = config.load(tmp_path / "files" / "experiment.toml")
    yield Deployment(experiment, read_configs(paths.values()), tmp_path / "files" / "store", tmp_path)
    flower._client_side.cache_clear()


def greet(side: ServerSide, nodes: Nodes, start: Any = None) -> None:
    side.welcome(nodes.send_and_receive(side.hello_messages(nodes.get_node_ids())), start)


def play(side: ServerSide, nodes: Nodes, round_: int) -> Any:
    messages = side.train_messages(round_)
    return side.take_replies(messages, nodes.send_and_receive(messages))


def digests() -> list[str]:
    return [row["digest"] for row in simulate(parse(SMALL, {}, "test")).rounds]


def state_file(deployment: Deployment, side: ServerSide, round_: int) -> Path:
    return deployment.store / side.run_id / f"{VICTIM}.{round_}.safetensors"


def test_states_survive_every_process_and_another_number_of_flowers(deployment: Deployment, tmp_path: Path) -> None:
    first = deployment.server()
    nodes = deployment.nodes(flower_run=1)
    greet(first, nodes)
    found = [play(first, nodes, 1).digest]
    snapshot = first.snapshot(play(first, deployment.nodes(flower_run=2), 2), [])
    found.append(snapshot.record.digest)

    again = deployment.server(first.run_id)  # all that a new process knows: its checkpoint, and the name of the run
    nodes = deployment.nodes(flower_run=3)
    greet(again, nodes, snapshot)
    found.append(play(again, nodes, 3).digest)

    assert found == digests()
    assert all(len(context.state) == 0 for context in nodes.contexts.values())
    assert [path.name for path in deployment.store.iterdir()] == [first.run_id]


def test_a_round_that_is_redone_ends_the_same(deployment: Deployment) -> None:
    side, nodes = deployment.server(), deployment.nodes()
    greet(side, nodes)
    start = side.snapshot(play(side, nodes, 1), [])
    play(side, nodes, 2)  # of which the server has lost everything

    again = deployment.server(side.run_id)
    greet(again, nodes, start)

    assert [play(again, nodes, 2).digest, play(again, nodes, 3).digest] == digests()[1:]


def test_a_run_does_not_find_the_states_of_another(deployment: Deployment) -> None:
    side, nodes = deployment.server(), deployment.nodes()
    greet(side, nodes)
    play(side, nodes, 1)
    start = side.snapshot(play(side, nodes, 2), [])

    other = deployment.server()
    greet(other, nodes, replace(start, versions={VICTIM: 2}))
    record = play(other, nodes, 3)

    assert sorted(record.failed) == [VICTIM]
    assert sorted(record.participants) == ["client-0", "client-2"]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "a bit":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "another client's":
        path.write_bytes(path.with_name(path.name.replace(VICTIM, "client-0")).read_bytes())
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("a bit", r"client-1\.2\.safetensors: expected the state that the server knows .*, found another one"),
        ("another client's", r"client-1\.2\.safetensors: expected the state that the server knows"),
        ("cut", r"client-1\.2\.safetensors: expected a client's state, found a damaged file"),
        ("empty", r"client-1\.2\.safetensors: expected a client's state, found a damaged file"),
        ("gone", r"client-1: expected its state of round 2 in .*client-1\.2\.safetensors, found none; name the folder"),
    ],
)
def test_a_damaged_state_costs_its_client_the_round_and_is_named(
    how: str, problem: str, deployment: Deployment
) -> None:
    side, nodes = deployment.server(), deployment.nodes()
    greet(side, nodes)
    play(side, nodes, 1)
    play(side, nodes, 2)
    damage(state_file(deployment, side, 2), how)

    record = play(side, nodes, 3)

    assert sorted(record.participants) == ["client-0", "client-2"]
    assert list(record.failed) == [VICTIM]
    assert re.search(problem, record.failed[VICTIM])
    assert len(record.failed[VICTIM].splitlines()) == 1
    assert record.refused == {}


@pytest.mark.parametrize("run_id", [None, "", "../../../etc", "0" * 31, "0" * 33, "A" * 32, 7])
def test_the_name_of_a_run_is_no_path(run_id: object, deployment: Deployment) -> None:
    nodes = deployment.nodes()
    header = {"round": 1, **({} if run_id is None else {"run": run_id})}
    [reply] = nodes.send_and_receive([Message(pack(header), dst_node_id=1000, message_type="train")])
    assert reply.has_error()
    assert "run: expected the name of a run" in reply.error.reason
    assert not deployment.store.exists()


def test_what_a_node_is_told_names_the_run(deployment: Deployment) -> None:
    side, nodes = deployment.server("ab" * 16), deployment.nodes()
    greet(side, nodes)
    assert {header_of(message.content)["run"] for message in side.train_messages(1)} == {"ab" * 16}
    assert deployment.server().run_id != deployment.server().run_id


def test_a_run_folder_keeps_the_name_of_its_run(tmp_path: Path) -> None:
    experiment = parse(SMALL, {}, "test")
    folder = RunFolder(tmp_path / "run", experiment)
    name = folder.run_id
    (tmp_path / "run" / "rounds.jsonl").write_bytes(b"")
    assert len(bytes.fromhex(name)) == 16
    assert RunFolder.reopen(tmp_path / "run", 0).run_id == folder.run_id == name
    assert RunFolder(tmp_path / "other", experiment).run_id != name


@pytest.mark.parametrize("place", ["a file", "/proc/nowhere"])
def test_a_store_that_cannot_be_written_is_one_line_to_the_operator_and_in_the_nodes_own_log(
    place: str, deployment: Deployment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").write_text("no folder", encoding="utf-8")
    if not place.startswith("/"):
        place = str(tmp_path / place)
    [node] = [node for node, config in deployment.configs.items() if config["client"] == VICTIM]
    deployment.configs[node] = {**deployment.configs[node], "store": place}
    nodes, side = deployment.nodes(), deployment.server()

    with pytest.raises(RunError) as failed:
        side.welcome(nodes.send_and_receive(side.hello_messages(nodes.get_node_ids())))

    expected = f"{VICTIM}: store: expected a folder that can be written, {place}, found: cannot use {place}"
    _, line = str(failed.value).splitlines()
    assert line.startswith(f"node {node}: it could not say who it is: {expected}")
    assert line.endswith("or name another folder as store in the node config.")
    [said] = [message for message in caplog.messages if "failed" in message]
    assert said.startswith(f"query.hello failed: {expected}")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (errno.ENOSPC, "make room there"),
        (errno.EDQUOT, "make room there"),
        (errno.EACCES, "let the SuperNode's user write there"),
    ],
)
def test_a_store_that_cannot_be_written_says_what_to_do(reason: int, remedy: str, tmp_path: Path) -> None:
    expected = f"found: cannot use {tmp_path}: {os.strerror(reason)}; {remedy}, or name another folder"
    with pytest.raises(UserError, match=re.escape(expected)), flower._store_usable(tmp_path):
        raise OSError(reason, os.strerror(reason))
