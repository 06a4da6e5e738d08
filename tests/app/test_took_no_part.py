"""The summary names the clients that took no part."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedkd.app.announce import announcements
from fedkd.app.presence import NOT_THERE, Presence, took_no_part
from tests.app.moving import NEW, OLD, VICTIM, Moving, come, config_of, leave, nodes_of
from tests.app.nodes import Deployment

pytestmark = pytest.mark.usefixtures("quick")

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
    assert line.startswith(f"node {OLD}: it could not say who it is: {VICTIM}: ")
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


def test_a_client_that_counted_took_part_whatever_became_of_it(deployment: Deployment) -> None:
    lost = {**config_of(deployment), "data": "/nowhere.npz"}

    deployment.serve(nodes_of(deployment, {2: [leave(OLD)], 3: [come(NEW, lost)]}))

    assert VICTIM in deployment.rows()[0]["participants"]
    assert VICTIM in deployment.rows()[3]["failed"]
    assert "took_no_part" not in summary_of(deployment)


def test_who_goes_and_why_is_told_to_the_operator(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    other = {**config_of(deployment), "data": "/nowhere.npz"}

    deployment.serve(nodes_of(deployment, {2: [leave(OLD)], 3: [come(NEW, other)], 4: [leave(NEW)]}))

    told = [values["text"] for kind, values in announcements(capsys.readouterr().err) if kind == "told"]
    assert [line.partition(":")[0] for line in told[:3]] == ["takes part"] * 3
    assert told[3] == f"is not there: {VICTIM}"
    assert told[4].startswith(f"a client takes no part: node {NEW}: it could not say who it is: {VICTIM}: ")
    assert len(told) == 5


def test_strangers_and_missing_clients_are_both_told() -> None:
    outside = {"node 7: Traceback\nOSError: disk": frozenset({7}), "nodes 8, 9: x": frozenset({8, 9})}
    assert took_no_part(Presence(outside=outside), {}, [], 5) == [
        "node 7: Traceback OSError: disk",
        "nodes 8, 9: x",
        "2 more of 5 clients",
    ]
    assert took_no_part(Presence(outside=outside), {}, [], 3) == ["node 7: Traceback OSError: disk", "nodes 8, 9: x"]
