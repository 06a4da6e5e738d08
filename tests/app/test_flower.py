"""Flower's two apps, called as Flower calls them, but in this process; Flower's own run is in tests/engine."""

import ast
import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedkd import simulate
from fedkd.app import flower
from fedkd.app.flower import experiment_of, make_client_app, make_server_app
from fedkd.app.punctual import ARE_YOU_THERE, Punctual
from fedkd.app.run_folder import read_lines, read_models
from fedkd.app.wire import pack
from fedkd.config import Experiment
from fedkd.engine.local import LocalGrid
from fedkd.errors import RunError, UserError

SMALL: Mapping[str, Any] = {
    "strategy": "fedmd",
    "rounds": 2,
    "data": {"public": 40, "validation": 1300, "test": 40},
    "federation": {"clients": 3, "architectures": ("mlp",), "feature_width": 8},
    "train": {"local_epochs": 1},
    "strategies": {"fedmd": {"transfer_epochs": 1}},
}
EXPERIMENT = Experiment(**SMALL)
RUN_ID = 815


@pytest.fixture(autouse=True)
def _fresh_processes() -> Iterator[None]:
    yield
    flower._client_side.cache_clear()


class Nodes(LocalGrid):
    """A grid whose nodes are ClientApps, each with a context of its own; a new process for every message if asked."""

    def __init__(self, experiment: Experiment, run_config: dict[str, Any], *, forgetful: bool = False) -> None:
        super().__init__(experiment)
        self.app = make_client_app()
        self.contexts = {
            node: Context(RUN_ID, node, {"partition-id": k, "num-partitions": 3}, RecordDict(), run_config)
            for k, node in enumerate(self._keys)
        }
        self.forgetful = forgetful
        self.replies: dict[str, Message] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        for message in messages:
            if self.forgetful:
                flower._client_side.cache_clear()
            try:
                yield self.app(message, self.contexts[message.metadata.dst_node_id])
            except Exception as error:  # as Flower does
                yield Message(Error(code=0, reason=f"{type(error).__name__}: {error}"), reply_to=message)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        names = [str(len(self.replies) + k) for k in range(len(sent))]
        for name, reply in zip(names, self.send_and_receive(sent), strict=True):
            reply.metadata.__dict__["_reply_to_message_id"] = name
            self.replies[name] = reply
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies[name] for name in message_ids]


def server_context(run_config: dict[str, Any]) -> Context:
    return Context(RUN_ID, 0, {}, RecordDict(), run_config)


def run_apps(experiment: Experiment, out: str, *, forgetful: bool = False) -> Nodes:
    run_config = {"experiment": experiment.to_toml(), "overrides": "", "out": out}
    nodes = Nodes(experiment, run_config, forgetful=forgetful)
    make_server_app()(nodes, server_context(run_config))
    return nodes


@pytest.mark.parametrize("forgetful", [False, True], ids=["one process", "a process for each message"])
def test_the_apps_compute_what_our_own_grid_computes(tmp_path: Path, forgetful: bool) -> None:
    expected = simulate(EXPERIMENT)

    nodes = run_apps(EXPERIMENT, str(tmp_path / "run"), forgetful=forgetful)

    rounds = read_lines(tmp_path / "run" / "rounds.jsonl")
    assert [{**row, "seconds": 0} for row in rounds] == [{**row, "seconds": 0} for row in expected.rounds]
    assert read_lines(tmp_path / "run" / "clients.jsonl") == list(expected.clients)
    assert (tmp_path / "run" / "summary.json").exists()
    _, clients = read_models(tmp_path / "run")
    for key, models in expected.client_models.items():
        for name, tensor in models["student"].state_dict().items():
            assert torch.equal(clients[key]["student"].tensors[name], tensor)
    assert all(len(context.state) == 0 for context in nodes.contexts.values()), "states belong on disk"


@pytest.mark.parametrize("simulated", [False, True])
def test_every_grid_but_a_simulations_is_looked_after(
    simulated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real nodes work on one message after the other, whoever has dealt out their samples; simulated ones do not."""
    carriers: list[Grid] = []

    def stop(grid: Grid, *others: object) -> None:
        carriers.append(grid)
        raise RunError("enough")

    monkeypatch.setattr(flower, "run", stop)
    monkeypatch.setattr(flower, "is_simulation", lambda grid: simulated)
    with pytest.raises(RunError, match="enough"):
        make_server_app()(
            Nodes(EXPERIMENT, {}), server_context({"experiment": EXPERIMENT.to_toml(), "out": str(tmp_path / "run")})
        )

    assert [isinstance(carrier, Punctual) for carrier in carriers] == [not simulated]


def test_without_a_run_folder_the_default_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    run_apps(EXPERIMENT.changed(name="named"), "")

    assert sorted(read_models(tmp_path / "runs" / "named")[1]) == ["client-0", "client-1", "client-2"]
    assert [path.name for path in temporary.iterdir()] == [f"fedkd-{RUN_ID}"]


def test_clients_elsewhere_keep_their_states_and_the_run_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_config = {"experiment": EXPERIMENT.to_toml(), "overrides": "", "out": str(tmp_path / "server")}
    nodes = Nodes(EXPERIMENT, {**run_config, "out": str(tmp_path / "client")})

    make_server_app()(nodes, server_context(run_config))

    assert (tmp_path / "server" / "summary.json").exists()
    assert len(read_lines(tmp_path / "server" / "clients.jsonl")) == 3
    assert read_models(tmp_path / "server") == ({}, {})
    assert len(list((tmp_path / "client" / "states").rglob("client-*.2.safetensors"))) == 3


def test_a_client_that_fails_everywhere_is_named_by_the_server(tmp_path: Path) -> None:
    run_config = {"experiment": EXPERIMENT.to_toml(), "overrides": "", "out": str(tmp_path)}
    nodes = Nodes(EXPERIMENT, {**run_config, "experiment": ""})

    with pytest.raises(RunError, match="expected the key 'experiment', a path or the TOML text, found none") as caught:
        make_server_app()(nodes, server_context(run_config))

    assert str(caught.value).count("expected the key") == 1
    assert not (tmp_path / "summary.json").exists()


def test_another_experiment_at_a_client_is_refused(tmp_path: Path) -> None:
    run_config = {"experiment": EXPERIMENT.to_toml(), "overrides": "", "out": str(tmp_path)}
    nodes = Nodes(EXPERIMENT, run_config)
    nodes.contexts[2].run_config = {**run_config, "overrides": "seed=7"}

    make_server_app()(nodes, server_context(run_config))

    assert [row["client"] for row in read_lines(tmp_path / "clients.jsonl")] == ["client-0", "client-2"]


@pytest.mark.parametrize("number", [None, "0", -1, 3, True])
def test_a_node_of_no_simulation_is_told_what_it_lacks(number: object, tmp_path: Path) -> None:
    nodes = Nodes(EXPERIMENT, {"experiment": EXPERIMENT.to_toml(), "overrides": "", "out": str(tmp_path)})
    nodes.contexts[1].node_config = {} if number is None else {"partition-id": number}  # type: ignore[dict-item]

    [reply] = nodes.send_and_receive([Message(pack({"run": "0" * 32}), dst_node_id=1, message_type="query.hello")])

    assert reply.error.reason.startswith("node config: expected partition-id, from 0 to 2, as a simulation gives it")


def test_the_small_question_needs_neither_data_nor_a_run() -> None:
    nodes = Nodes(EXPERIMENT, {})

    [reply] = nodes.send_and_receive([Message(RecordDict(), dst_node_id=1, message_type=ARE_YOU_THERE)])

    assert not reply.has_error()
    assert not reply.content


# --- the run configuration


def test_an_experiment_as_text() -> None:
    assert experiment_of({"experiment": EXPERIMENT.to_toml()}) == EXPERIMENT


def test_overrides_are_separated_by_blanks_and_may_be_quoted() -> None:
    overrides = 'seed=7 train.lr=0.5 \'federation.architectures=["mlp", "cnn"]\''

    found = experiment_of({"experiment": EXPERIMENT.to_toml(), "overrides": overrides})

    assert (found.seed, found.train.lr, found.federation.architectures) == (7, 0.5, ("mlp", "cnn"))


def test_an_experiment_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text(EXPERIMENT.to_toml(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    assert experiment_of({"experiment": "mine.toml"}) == EXPERIMENT


def test_an_experiment_in_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundle" / "simulations").mkdir(parents=True)
    (tmp_path / "bundle" / "simulations" / "mine.toml").write_text(EXPERIMENT.to_toml(), encoding="utf-8")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setattr(flower.fedkd, "__file__", str(tmp_path / "bundle" / "fedkd" / "__init__.py"))

    assert experiment_of({"experiment": "simulations/mine.toml"}) == EXPERIMENT


@pytest.mark.parametrize(
    ("run_config", "problem"),
    [
        ({}, "expected the key 'experiment'"),
        ({"experiment": "nowhere.toml"}, r"nowhere\.toml: expected a readable experiment file"),
        ({"experiment": "\nseed = 'x'\n"}, "seed: expected a whole number"),
        ({"experiment": EXPERIMENT.to_toml(), "overrides": "sed=1"}, "unknown key 'sed': did you mean 'seed'"),
    ],
)
def test_a_run_configuration_that_names_no_experiment(run_config: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        experiment_of(run_config)


# --- the entry points of `flwr run .`


def test_the_entry_points_are_plain_assignments() -> None:
    """Flower looks for them in the syntax tree, without importing the module."""
    assigned = {
        target.id: node.value
        for node in ast.parse(inspect.getsource(flower)).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    assert isinstance(assigned["server_app"], ast.Call)
    assert isinstance(assigned["client_app"], ast.Call)
    assert isinstance(flower.server_app, ServerApp)
    assert isinstance(flower.client_app, ClientApp)


@pytest.mark.parametrize("type_", ["train", "evaluate", "query.hello"])
def test_the_client_app_answers_each_of_our_messages(type_: str, tmp_path: Path) -> None:
    run_config = {"experiment": EXPERIMENT.to_toml(), "overrides": "", "out": str(tmp_path)}
    nodes = Nodes(EXPERIMENT, run_config)
    [reply] = nodes.send_and_receive(
        [Message(pack({"run": "0" * 32, "round": 1, "client": "client-0"}), dst_node_id=1, message_type=type_)]
    )

    assert not reply.has_error()
    assert reply.metadata.message_type == type_
