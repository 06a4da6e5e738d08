"""What Flower 1.41 itself does when a process of a deployment is killed: what going on after a kill builds on.

A small app without fedkd, whose client half computes as long as it is told. Each test kills one process by its pid and
holds Flower to the table of ``docs/decisions/0018-what-flower-does-when-killed.md``.
"""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from fedkd.engine.commands import without_colours

pytestmark = [pytest.mark.flower, pytest.mark.slow]

LONG = 200.0
SILENCE = 2 * 30.0 + 30.0  # Flower waits for two heartbeats of 30 s; the rest is room for a busy machine
PROJECT = """
[project]
name = "kills"
version = "0.1.0"
description = "One round"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "fedkd"
[tool.flwr.app.components]
serverapp = "app:server_app"
clientapp = "app:client_app"
[tool.flwr.app.config]
seconds = 0.0
"""
APP = """
import json
import os
import time

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    print("SERVER", os.getpid(), flush=True)
    content = RecordDict({"it": ConfigRecord({"seconds": context.run_config["seconds"]})})
    for reply in grid.send_and_receive([Message(content, dst_node_id=nodes[0], message_type="query")], timeout=200):
        said = reply.error.reason if reply.has_error() else "fine"
        print("REPLY", json.dumps({"node": str(nodes[0]), "said": said}), flush=True)
    print("DONE", flush=True)


@client_app.query()
def query(message, context):
    print("CLIENT", os.getpid(), flush=True)
    time.sleep(message.content["it"]["seconds"])
    return Message(RecordDict(), reply_to=message)
"""


class Run:
    """One run of the small app on a deployment with one node."""

    def __init__(self, here, app: Path, seconds: float) -> None:
        self.here = here
        self.before = here.node_a.said.count("CLIENT ")
        self.id = self._ask("run", str(app), "fedkd", "-c", f"seconds={seconds}")["run-id"]

    def _ask(self, *command: str) -> dict:
        asked = self.here.script("operator/flwr.sh", *command, "--format", "json")
        assert asked.ended() == 0, asked.said
        text = without_colours(asked.said)
        return json.loads(text[text.index("{") :])

    def client(self) -> int:
        """Wait until the node computes; return its process."""
        said = self.here.node_a.wait_for("CLIENT ", self.before + 1)
        return int(said.rpartition("CLIENT ")[2].split()[0])

    def log(self) -> str:
        shown = self.here.script("operator/flwr.sh", "log", self.id, "fedkd", "--show")
        assert shown.ended() == 0, shown.said
        return shown.said

    def server(self) -> int:
        return int(self.log().rpartition("SERVER ")[2].split()[0])

    def end(self, seconds: float = LONG) -> tuple[str, str]:
        """Wait until Flower calls the run finished; return the status and its details."""
        deadline = time.monotonic() + seconds
        while True:
            run = self._ask("list", "fedkd", "--run-id", self.id)["runs"][0]
            if run["status"].startswith("finished"):
                return run["status"], run["status-details"]
            assert time.monotonic() < deadline, run
            time.sleep(1)

    def reply(self) -> dict:
        return json.loads(self.log().rpartition("REPLY ")[2].splitlines()[0])


def start_node(here) -> str:
    """Start the node, again and again until it is let in; return its id."""
    deadline = time.monotonic() + SILENCE
    while True:
        node = here.script("hospital-a/start.sh")
        with contextlib.suppress(AssertionError):
            said = node.wait_for("SuperNode ID: ")
            here.node_a = node
            return said.rpartition("SuperNode ID: ")[2].split()[0]
        assert "[code: 2004]" in node.said  # the one that was killed still counts as online
        assert time.monotonic() < deadline, node.said


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "app.py").write_text(APP)
    return folder


@pytest.fixture(scope="module")
def here(running):
    running.node_id = start_node(running)
    return running


def test_a_killed_server_half_is_a_failed_run_and_is_not_started_again(here, app):
    run = Run(here, app, seconds=30.0)
    run.client()
    follow = here.script("operator/flwr.sh", "log", run.id, "fedkd", "--stream")
    kill(run.server())

    assert run.end(SILENCE) == ("finished:failed", "No heartbeat received from the task")
    assert follow.ended() == 0  # the log's end says nothing
    assert "DONE" not in run.log()


def test_a_killed_client_half_answers_with_an_error_after_a_minute(here, app):
    run = Run(here, app, seconds=60.0)
    kill(run.client())

    assert run.end()[0] == "finished:completed"
    assert run.reply() == {"node": here.node_id, "said": "ClientApp stopped responding."}


def test_a_killed_node_answers_with_an_error_and_comes_back_under_its_id(here, app):
    run = Run(here, app, seconds=60.0)
    client = run.client()
    here.node_a.process.kill()
    here.node_a.process.wait()
    with contextlib.suppress(ProcessLookupError):
        kill(client)  # it may outlive its SuperNode

    # Not started again before: one that is let in between two looks of the server's is never missed, nor its answer.
    assert run.end()[0] == "finished:completed"
    assert run.reply()["said"].startswith("Error: Node Unavailable")
    assert start_node(here) == here.node_id


def test_a_killed_superlink_knows_its_nodes_again_but_does_not_go_on_with_the_run(here, app):
    run = Run(here, app, seconds=30.0)
    run.client()
    server = run.server()
    here.superlink.process.kill()
    here.superlink.process.wait()
    with contextlib.suppress(ProcessLookupError):
        kill(server)  # as systemd does, which ends all processes of a service
    here.superlink = here.script("superlink/start.sh")
    here.superlink.wait_for("Uvicorn running on https")

    assert run.end(SILENCE) == ("finished:failed", "No heartbeat received from the task")
    assert here.node_a.process.poll() is None  # it was not started again, nor registered again
    again = Run(here, app, seconds=0.0)
    assert again.end()[0] == "finished:completed"
    assert again.reply() == {"node": here.node_id, "said": "fine"}
