"""A client whose state is lost begins anew only when its owner has said so."""

import pytest
from flwr.app import Message

from fedkd.app.client import ClientSide, ClientTask
from fedkd.app.run_folder import read_lines
from fedkd.app.state import FolderStates, State
from fedkd.data.own import Owner, build_node
from tests.app.moving import OLD, VICTIM, Change, Moving, come, config_of, nodes_of, outcome, simulated
from tests.app.nodes import Deployment

pytestmark = pytest.mark.usefixtures("quick")

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
