"""What travels to workers and back."""

from flwr.app import Message

from fedkd.app.client import TRAIN
from fedkd.app.wire import PAYLOAD, knowledge_of, pack, without_tensors
from fedkd.engine.worker import whole
from fedkd.flower_internals import ensure_task_identity
from fedkd.knowledge import Weights


def test_a_payload_without_tensors_stays_a_payload() -> None:
    ensure_task_identity()
    reply, records = without_tensors(Message(pack({}, Weights({})), dst_node_id=0, message_type=TRAIN))
    assert PAYLOAD not in reply.content
    assert knowledge_of(whole((reply, list(records)), {}).content) == Weights({})
