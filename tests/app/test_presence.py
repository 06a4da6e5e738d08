"""Nodes go and come back: a client is its name, and takes part again if it is what it was."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fedkd.app.client import ClientSide, ClientTask
from fedkd.app.presence import NOT_THERE
from fedkd.app.server import ServerSide
from fedkd.app.wire import COMMON, header_of, pack
from fedkd.config import parse
from fedkd.errors import RunError
from tests.app.moving import NEW, OLD, VICTIM, Change, Moving, come, config_of, leave, nodes_of, outcome, simulated
from tests.app.nodes import SMALL, Deployment, Killed

pytestmark = pytest.mark.usefixtures("quick")

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
