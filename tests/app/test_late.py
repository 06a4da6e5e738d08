"""What comes too late, or twice, is sorted out and counted; it changes no result."""

from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Error, Message

from fedkd.app.client import HELLO
from fedkd.app.presence import NOT_THERE
from fedkd.app.server import ServerSide
from tests.app.moving import NEW, OLD, VICTIM, Moving, come, config_of, leave, nodes_of, outcome, simulated
from tests.app.nodes import Deployment

pytestmark = pytest.mark.usefixtures("quick")

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
