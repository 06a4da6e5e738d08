"""What travels to workers and back."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message

from fedkd.app.client import TRAIN
from fedkd.app.wire import PAYLOAD, knowledge_of, pack, without_tensors
from fedkd.config import Experiment
from fedkd.engine.worker import Sent, Worker, whole
from fedkd.flower_internals import ensure_task_identity
from fedkd.knowledge import Weights

SMALL = {"strategy": "fedavg", "data": {"public": 40, "validation": 1000, "test": 40}, "federation": {"clients": 3}}


def test_a_payload_without_tensors_stays_a_payload() -> None:
    ensure_task_identity()
    reply, records = without_tensors(Message(pack({}, Weights({})), dst_node_id=0, message_type=TRAIN))
    assert PAYLOAD not in reply.content
    assert knowledge_of(whole((reply, list(records)), {}).content) == Weights({})


@pytest.mark.parametrize(("alone", "expected"), [(True, [1, 1, 1]), (False, [3])])
def test_single_clients_that_travel_together_are_run_alone(alone: bool, expected: list[int]) -> None:
    """How many travel together depends on the number of workers."""
    ensure_task_identity()
    worker, sizes = Worker(Experiment(**SMALL).model_dump_json(), list(sys.path)), []

    def handle(tasks: list[Any]) -> list[Any]:
        sizes.append(len(tasks))
        return [SimpleNamespace(reply=task.message, state=None) for task in tasks]

    worker._side.handle = handle  # type: ignore[method-assign, assignment]
    message = Message(pack({}), dst_node_id=0, message_type=TRAIN)
    replies, _, _ = worker.run([Sent(message, f"client-{k}", {}, None, alone) for k in range(3)])
    assert (sizes, len(replies)) == (expected, 3)
