"""Nodes go and come back: a client is its name, and takes part again if it is what it was."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict

from fedkd.app import flower, loop, punctual
from fedkd.app.client import HELLO, ClientSide, ClientTask
from fedkd.app.presence import NOT_THERE, Presence, took_no_part
from fedkd.app.run_folder import read_lines
from fedkd.app.server import ServerSide
from fedkd.app.state import FolderStates, State
from fedkd.app.wire import COMMON, header_of, pack
from fedkd.config import Experiment, parse
from fedkd.data.own import Owner, build_node
from fedkd.engine.local import LocalGrid
from fedkd.errors import RunError
from tests.app.nodes import RUN, SMALL, Deployment, Killed, Mortal

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


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(punctual, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(loop, "_LOOK_SECONDS", 0.01)
    yield
    flower._client_side.cache_clear()


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path, {"rounds": 4, "engine.join_timeout": 0.3})


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


# --- it goes, and comes back


@pytest.mark.parametrize("node", [OLD, NEW], ids=["the same number", "another number"])
def test_a_node_that_was_gone_takes_part_again_from_its_state(node: int, deployment: Deployment) -> None:
    config = config_of(deployment)
    nodes = nodes_of(deployment, {2: [leave(OLD)], 4: [come(node, config)]})

    deployment.serve(nodes)

    rows = deployment.rows()
    assert outcome(rows) == simulated(deployment, {2, 3})
    assert [row["failed"] for row in rows] == [{}, {VICTIM: NOT_THERE}, {VICTIM: NOT_THERE}, {}]
    assert [row["unmeasured"] for row in rows] == [{}, {VICTIM: NOT_THERE}, {VICTIM: NOT_THERE}, {}]
    assert [row["refused"] for row in rows] == [{}, {}, {}, {}]
    assert nodes.hellos() == [node]
    [train] = [m for m in nodes.sent if m.metadata.message_type == "train" and m.metadata.dst_node_id == node][-1:]
    assert header_of(train.content)["version"] == 1
    assert not [m for m in nodes.sent if m.metadata.dst_node_id == OLD and header_of(m.content)["round"] in (2, 3)]


def test_with_everybody_there_nobody_is_greeted_twice(deployment: Deployment) -> None:
    nodes = nodes_of(deployment)

    deployment.serve(nodes)

    assert outcome(deployment.rows()) == simulated(deployment, set())
    assert nodes.hellos() == []
    assert all("afresh" not in row for row in deployment.rows())


def test_a_node_that_dies_in_mid_round_is_counted_out_and_back_in(deployment: Deployment) -> None:
    config = config_of(deployment)

    class Dying(Moving):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            sent = list(messages)
            if (sent[0].metadata.message_type, sent[0].metadata.group_id) == ("train", "2"):
                self.contexts.pop(OLD)
            return super().push_messages(sent)

    nodes = Dying(deployment.run_config(), deployment.configs)
    nodes.changes = {3: [come(NEW, config)]}
    deployment.serve(nodes)

    rows = deployment.rows()
    assert outcome(rows) == simulated(deployment, {2})
    assert [row["failed"] for row in rows] == [{}, {VICTIM: "Error: Node Unavailable"}, {}, {}]


# --- one name, several nodes


def test_a_second_node_of_a_client_is_refused_until_the_first_is_gone(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(deployment)
    nodes = nodes_of(deployment, {2: [come(NEW, config)], 4: [leave(OLD)]})

    deployment.serve(nodes)

    rows = deployment.rows()
    assert outcome(rows) == simulated(deployment, set())
    assert [row["refused"] for row in rows] == [{}, {"unfit": 1}, {"unfit": 1}, {}]
    told = [message for message in caplog.messages if "takes no part" in message]
    assert told == [
        f"a client takes no part: node {NEW}: client-1: expected one client of this name, "
        f"found 2 (nodes {NEW}, {OLD}); give each its own."
    ]
    assert {m.metadata.dst_node_id for m in nodes.sent if m.metadata.group_id == "4"} == {1000, NEW, 998}


def test_of_two_nodes_that_come_for_one_client_neither_is_taken(deployment: Deployment) -> None:
    config = config_of(deployment)
    nodes = nodes_of(deployment, {2: [leave(OLD)], 3: [come(NEW, config), come(8, config)], 4: [leave(8)]})

    deployment.serve(nodes)

    rows = deployment.rows()
    assert outcome(rows) == simulated(deployment, {2, 3})
    assert [row["refused"] for row in rows] == [{}, {}, {"unfit": 2}, {}]


def test_an_unknown_client_is_turned_away_once(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    stranger = {**config_of(deployment), "client": "client-9"}
    nodes = nodes_of(deployment, {2: [come(NEW, stranger)]})

    deployment.serve(nodes)

    rows = deployment.rows()
    assert outcome(rows) == simulated(deployment, set())
    assert [row["refused"] for row in rows] == [{}, {"unfit": 1}, {}, {}]
    assert nodes.hellos() == [NEW]
    assert "client-9: expected a client of this run, which began without it" in caplog.text


def test_a_node_that_was_turned_away_is_asked_again_when_it_was_gone(deployment: Deployment) -> None:
    stranger = {**config_of(deployment), "client": "client-9"}
    changes = {2: [leave(OLD), come(NEW, stranger)], 3: [leave(NEW)], 4: [come(NEW, config_of(deployment))]}
    nodes = nodes_of(deployment, changes)

    deployment.serve(nodes)

    assert outcome(deployment.rows()) == simulated(deployment, {2, 3})
    assert nodes.hellos() == [NEW, NEW]


# --- what it says must be what it said


def test_a_node_that_comes_back_with_other_samples_is_refused_by_name(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(deployment)
    other = deployment.store.parent / "other.npz"
    with np.load(config["data"]) as held:
        np.savez(other, **{**dict(held), "labels": (held["labels"] + 1) % 10})
    changes = {2: [leave(OLD)], 3: [come(NEW, {**config, "data": str(other)})], 4: [come(NEW, config)]}

    deployment.serve(nodes_of(deployment, changes))

    rows = deployment.rows()
    assert outcome(rows) == simulated(deployment, {2, 3})
    assert [row["refused"] for row in rows] == [{}, {}, {"unfit": 1}, {}]
    assert "client-1: label counts: expected what it said before round one, [" in caplog.text


def test_a_node_that_comes_back_with_other_code_is_refused_by_name(
    deployment: Deployment, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(deployment)
    honest = ClientSide._hello

    def lying(side: ClientSide, task: ClientTask, ask: Any) -> Any:
        found = honest(side, task, ask)
        header = {**header_of(found.reply.content, COMMON), **header_of(found.reply.content), "code": "0" * 64}
        return type(found)(Message(pack({k: v for k, v in header.items() if k != "seal"}), reply_to=task.message))

    changes: dict[int, list[Change]] = {
        2: [leave(OLD)],
        3: [come(NEW, config), lambda nodes: monkeypatch.setattr(ClientSide, "_hello", lying)],
        4: [lambda nodes: monkeypatch.setattr(ClientSide, "_hello", honest)],
    }
    deployment.serve(nodes_of(deployment, changes))

    rows = deployment.rows()
    assert outcome(rows) == simulated(deployment, {2, 3})
    assert [row["refused"] for row in rows] == [{}, {}, {"unfit": 1}, {}]
    assert "client-1: code: expected '" in caplog.text


def test_a_node_that_cannot_say_who_it_is_is_told_once_and_asked_again(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(deployment)
    changes = {2: [leave(OLD), come(NEW, {**config, "data": "nowhere.npz"})], 4: [come(NEW, config)]}

    deployment.serve(nodes_of(deployment, changes))

    rows = deployment.rows()
    assert outcome(rows) == simulated(deployment, {2, 3})
    assert [row["refused"] for row in rows] == [{}, {}, {}, {}], "an error is no claim"
    assert len([message for message in caplog.messages if "part: " in message and "nowhere.npz" in message]) == 1


# --- the server dies as well


def test_a_server_goes_on_without_a_node_that_is_gone_and_takes_it_back(deployment: Deployment) -> None:
    config = config_of(deployment)
    first = nodes_of(deployment)
    first.death = ("train", 2, "before")
    with pytest.raises(Killed):
        deployment.serve(first)

    nodes = nodes_of(deployment, {4: [come(NEW, config)]})
    nodes.contexts.pop(OLD)
    nodes.log.append(("evaluate", 1))
    deployment.serve(nodes)

    rows = deployment.rows()
    assert outcome(rows) == simulated(deployment, {2, 3})
    assert [row["failed"] for row in rows] == [{}, {VICTIM: NOT_THERE}, {VICTIM: NOT_THERE}, {}]


# --- too few


def test_too_few_clients_end_the_run_which_goes_on_when_they_are_back(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, {"federation.min_clients": 2, "engine.join_timeout": 0.3})
    nodes = nodes_of(deployment, {2: [leave(OLD), leave(998)]})

    with pytest.raises(
        RunError, match=r"expected at least 2 of 3 clients within 0\.3 s, found 1; start client-1, client-2"
    ):
        deployment.serve(nodes)
    deployment.serve(nodes_of(deployment))

    assert outcome(deployment.rows()) == simulated(deployment, set())


def test_a_round_with_too_few_replies_is_none(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, {"federation.min_clients": 2, "engine.join_timeout": 0.3})
    broken = {**config_of(deployment), "store": "/dev/null/nowhere"}
    also = {**config_of(deployment, "client-2"), "store": "/dev/null/nowhere"}
    nodes = nodes_of(deployment, {2: [come(OLD, broken), come(998, also)]})

    with pytest.raises(
        RunError, match=r"round 2: only 1 of at least 2 clients sent a usable reply\.\nclient-1, client-2:"
    ):
        deployment.serve(nodes)
    assert len(deployment.rows()) == 1
    deployment.serve(nodes_of(deployment))

    assert outcome(deployment.rows()) == simulated(deployment, set())


@pytest.mark.parametrize(("fewest", "participation", "needed"), [(None, 1.0, 1), (4, 1.0, 4), (4, 0.5, 2), (1, 0.1, 1)])
def test_how_many_replies_a_round_needs(fewest: int | None, participation: float, needed: int) -> None:
    changes = {"federation.clients": 5, "federation.min_clients": fewest, "federation.participation": participation}
    side = ServerSide(parse(SMALL, {k: v for k, v in changes.items() if v is not None}, "test"))
    assert side._fewest_replies == needed


# --- late


class Held(Moving):
    """Nodes of which one answers the hello only after the others have been trained."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.held: dict[str, int] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        names = list(super().push_messages(sent))
        for name, message in zip(names, sent, strict=True):
            if message.metadata.message_type == HELLO and message.metadata.dst_node_id == NEW and not self.held:
                self.held[name] = len(self.log)
        for name in names:
            self.replies[name].metadata.__dict__["_reply_to_message_id"] = name
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [
            name for name in message_ids if self.held.get(name, -2) + 1 <= len(self.log) - 1 or name not in self.held
        ]
        return [self.replies.pop(name) for name in ready if name in self.replies]


def test_a_late_answer_to_a_hello_counts_in_the_next_round(deployment: Deployment) -> None:
    config = config_of(deployment)
    nodes = Held(deployment.run_config(), deployment.configs)
    nodes.changes = {2: [leave(OLD), come(NEW, config)]}

    deployment.serve(nodes)

    rows = deployment.rows()
    assert outcome(rows) == simulated(deployment, {2})
    assert [row["refused"] for row in rows] == [{}, {}, {}, {}]


def test_a_late_reply_that_comes_with_a_hello_is_counted_as_late(deployment: Deployment) -> None:
    side, nodes = ServerSide(deployment.experiment), nodes_of(deployment)
    side.welcome(nodes.send_and_receive(side.hello_messages(nodes.get_node_ids())))
    first = side.train_messages(1)
    *early, late = nodes.send_and_receive(first)
    side.take_replies(first, early)

    side.take_back([late])
    second = side.train_messages(2)
    record = side.take_replies(second, nodes.send_and_receive(second))

    assert record.refused == {"late": 1}
    assert len(record.participants) == 3


def test_a_second_answer_to_a_hello_after_the_first_has_counted_changes_nothing(deployment: Deployment) -> None:
    side, nodes = ServerSide(deployment.experiment), nodes_of(deployment)
    there = sorted(nodes.get_node_ids())
    side.welcome(nodes.send_and_receive(side.hello_messages(there)))
    side.look([node for node in there if node != OLD])  # it was gone for a moment
    once, twice = side.look(there), side.look(there)
    side.take_back(nodes.send_and_receive(once))
    train = side.train_messages(1)

    record = side.take_replies(train, [*nodes.send_and_receive(twice), *nodes.send_and_receive(train)])
    side.take_back([])

    assert (record.refused, record.failed) == ({}, {})
    assert len(record.participants) == 3
    assert (side.presence.absent, side.presence.told, side.presence.unfit) == (set(), {}, set())


def test_what_flower_says_late_of_a_node_that_is_gone_is_late(deployment: Deployment) -> None:
    side, nodes = ServerSide(deployment.experiment), nodes_of(deployment)
    there = sorted(nodes.get_node_ids())
    side.welcome(nodes.send_and_receive(side.hello_messages(there)))
    first = side.train_messages(1)
    [lost] = [message for message in first if message.metadata.dst_node_id == OLD]
    side.take_replies(first, nodes.send_and_receive([message for message in first if message is not lost]))
    side.look([node for node in there if node != OLD])
    second = side.train_messages(2)
    gone = Message(Error(code=5, reason="Error: Node Unavailable"), reply_to=lost)

    record = side.take_replies(second, [gone, *nodes.send_and_receive(second)])

    assert record.refused == {"late": 1}
    assert record.failed == {VICTIM: NOT_THERE}


# --- a lost disk


def lose(deployment: Deployment) -> Change:
    def change(nodes: Moving) -> None:
        for file in deployment.store.rglob(f"{VICTIM}.*"):
            file.unlink()

    return change


def test_a_client_whose_state_is_lost_begins_anew_only_when_its_node_was_told(deployment: Deployment) -> None:
    config = config_of(deployment)

    def told(nodes: Moving) -> None:
        come(OLD, {**config, "afresh": (deployment.out / "run-id").read_text(encoding="utf-8").strip()})(nodes)

    nodes = nodes_of(deployment, {2: [lose(deployment)], 3: [come(OLD, {**config, "afresh": "0" * 32})], 4: [told]})
    deployment.serve(nodes)

    rows = deployment.rows()
    assert outcome(rows)[:1] == simulated(deployment, set())[:1]
    run_id = (deployment.out / "run-id").read_text(encoding="utf-8").strip()
    for row in rows[1:3]:
        assert list(row["failed"]) == [VICTIM]
        assert f'begin anew by afresh = "{run_id}" in the node config' in row["failed"][VICTIM]
        assert "afresh" not in row
    assert rows[3]["failed"] == {}
    assert rows[3]["afresh"] == [VICTIM]

    [train] = [m for m in nodes.sent if (m.metadata.message_type, m.metadata.dst_node_id) == ("train", OLD)][-1:]
    made = from_nothing(deployment, train)
    found = FolderStates(deployment.store / run_id).get(VICTIM, 4)
    assert found is not None
    assert found.keys() == made.keys()
    assert all((found[name] == tensor).all() for name, tensor in made.items())


def from_nothing(deployment: Deployment, message: Message) -> State:
    """Return the state of a client that gets this message as its first."""
    config = config_of(deployment)
    owner = Owner(config["client"], config["data"], config.get("view"), config.get("architecture"))
    side = ClientSide(deployment.experiment, build_node(deployment.experiment, owner))
    [outcome] = side.handle([ClientTask(message, VICTIM, None)])
    assert outcome.state is not None
    return outcome.state


def test_a_client_that_has_its_state_does_not_begin_anew(deployment: Deployment) -> None:
    def told(nodes: Moving) -> None:
        run_id = (deployment.out / "run-id").read_text(encoding="utf-8").strip()
        come(OLD, {**config_of(deployment), "afresh": run_id})(nodes)

    deployment.serve(nodes_of(deployment, {2: [told]}))

    assert outcome(deployment.rows()) == simulated(deployment, set())
    assert all("afresh" not in row for row in read_lines(deployment.out / "rounds.jsonl"))


# --- who took no part


def summary_of(deployment: Deployment) -> dict[str, Any]:
    return dict(json.loads((deployment.out / "summary.json").read_text(encoding="utf-8")))


def with_two(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path, {"rounds": 2, "engine.join_timeout": 0.3, "federation.min_clients": 2})


def test_where_all_take_part_the_summary_says_nothing_of_others(deployment: Deployment) -> None:
    deployment.serve(nodes_of(deployment, {2: [leave(OLD)], 3: [come(NEW, config_of(deployment))]}))

    assert "took_no_part" not in summary_of(deployment)


def test_a_client_without_its_data_is_named_with_its_node(tmp_path: Path) -> None:
    deployment = with_two(tmp_path)
    deployment.configs[OLD] = {**config_of(deployment), "data": "nowhere.npz"}

    deployment.serve(nodes_of(deployment))

    [line] = summary_of(deployment)["took_no_part"]
    assert line.startswith(f"node {OLD}: it failed before round one: {VICTIM}: ")
    assert "nowhere.npz: expected an .npz file" in line


def test_a_client_that_never_appeared_is_counted(tmp_path: Path) -> None:
    deployment = with_two(tmp_path)
    nodes = nodes_of(deployment)
    nodes.contexts.pop(OLD)

    deployment.serve(nodes)

    assert summary_of(deployment)["took_no_part"] == ["1 of 3 clients"]


def test_a_client_of_which_no_reply_counted_is_named_with_the_last_reason(tmp_path: Path) -> None:
    deployment = with_two(tmp_path)

    class Dying(Moving):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            sent = list(messages)
            if sent[0].metadata.message_type == "train":
                self.contexts.pop(OLD, None)
            return super().push_messages(sent)

    deployment.serve(Dying(deployment.run_config(), deployment.configs))

    assert [row["failed"] for row in deployment.rows()] == [{VICTIM: "Error: Node Unavailable"}, {VICTIM: NOT_THERE}]
    assert summary_of(deployment)["took_no_part"] == [f"{VICTIM}: {NOT_THERE}"]


def test_strangers_and_missing_clients_are_both_told() -> None:
    told = {"node 7: Traceback\nOSError: disk": frozenset({7}), "nodes 8, 9: x": frozenset({8, 9})}
    assert took_no_part(Presence(told=told), {}, [], 5) == [
        "node 7: Traceback OSError: disk",
        "nodes 8, 9: x",
        "2 more of 5 clients",
    ]
    assert took_no_part(Presence(told=told), {}, [], 3) == ["node 7: Traceback OSError: disk", "nodes 8, 9: x"]
