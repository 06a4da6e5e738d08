"""A small federation of which one client sends, in one round, something else than an honest one."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from torch import Tensor

from fedkd.app.client import TRAIN
from fedkd.app.loop import Run, run
from fedkd.app.wire import FORMAT, HEADER, PAYLOAD, header_of, to_arrays, to_tensors
from fedkd.config import Experiment
from fedkd.engine.local import LocalGrid

VICTIM, ROUND = "client-1", 2
SMALL: Mapping[str, Any] = {
    "rounds": 3,
    "data": {"public": 60, "public_per_round": 40, "validation": 1500, "test": 40},
    "federation": {"clients": 4, "architectures": ("mlp",), "feature_width": 8},
    "train": {"local_epochs": 1},
    "engine": {"evaluate_every": 2},
}
EXPERIMENT = Experiment(strategy="fedmd", **SMALL, strategies={"fedmd": {"transfer_epochs": 1, "revisit_epochs": 1}})
Replies = list[Message]
Tamper = Callable[[Message, Message, "Tampered"], Replies]


class Tampered(LocalGrid):
    """A grid on which one client's replies to one kind of message in one round are replaced."""

    def __init__(self, experiment: Experiment, tamper: Tamper, type_: str = TRAIN, round_: int = ROUND) -> None:
        super().__init__(experiment)
        self.tamper, self.type, self.round = tamper, type_, round_
        self.past: Replies = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
        sent = {message.metadata.dst_node_id: message for message in messages}
        replies = list(super().send_and_receive(sent.values()))
        received: Replies = []
        for reply in replies:
            message = sent[reply.metadata.src_node_id]
            mine = self.keys[reply.metadata.src_node_id] == VICTIM
            due = message.metadata.message_type == self.type and header_of(message.content)["round"] == self.round
            received += self.tamper(message, reply, self) if mine and due else [reply]
            if mine:
                self.past.append(reply)
        return received

    @property
    def keys(self) -> dict[int, str]:
        return self._keys


def finish(experiment: Experiment, tamper: Tamper, type_: str = TRAIN, round_: int = ROUND) -> Run:
    return run(Tampered(experiment, tamper, type_, round_), experiment)


def untouched(message: Message, reply: Message, grid: Tampered) -> Replies:
    return [reply]


def lost(message: Message, reply: Message, grid: Tampered) -> Replies:
    return []


def outcome(finished: Run) -> object:
    """All that a run leaves except its times."""
    named = ("failed", "unmeasured")
    rounds = [
        {**record.to_json(), "seconds": 0, "refused": {}, **{name: sorted(getattr(record, name)) for name in named}}
        for record in finished.rounds
    ]
    models = {name: {k: t.tolist() for k, t in m.tensors.items()} for name, m in finished.server_models.items()}
    return rounds, [client.to_json() for client in finished.clients], models, finished.versions


def error(message: Message, reply: Message, grid: Tampered) -> Replies:
    return [Message(Error(code=0, reason="Traceback\nOSError: disk on fire"), reply_to=message)]


def with_header(**changes: object) -> Tamper:
    def tamper(message: Message, reply: Message, grid: Tampered) -> Replies:
        header = {**header_of(reply.content), **changes}
        content = dict(reply.content)
        content[HEADER] = ConfigRecord({name: value for name, value in header.items() if value is not None})
        return [Message(RecordDict(content), reply_to=message)]

    return tamper


def with_tensors(change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Tamper:
    def tamper(message: Message, reply: Message, grid: Tampered) -> Replies:
        content = dict(reply.content)
        content[PAYLOAD] = to_arrays(change(to_tensors(reply.content.array_records[PAYLOAD])))
        return [Message(RecordDict(content), reply_to=message)]

    return tamper


def with_logits(change: Callable[[Tensor], Tensor]) -> Tamper:
    return with_tensors(lambda tensors: {**tensors, "logits": change(tensors["logits"].clone())})


def with_ids(change: Callable[[Tensor], Tensor]) -> Tamper:
    return with_tensors(lambda tensors: {**tensors, "ids": change(tensors["ids"].clone())})


def with_content(change: Callable[[RecordDict], Mapping[str, Any]]) -> Tamper:
    return lambda message, reply, grid: [Message(RecordDict(dict(change(reply.content))), reply_to=message)]


def put(where: tuple[int, ...], value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[where] = value
        return tensor

    return change


def replayed(message: Message, reply: Message, grid: Tampered) -> Replies:
    old = next(m for m in grid.past if m.metadata.message_type == TRAIN)
    assert header_of(old.content)["round"] == ROUND - 1
    return [Message(old.content, reply_to=message)]


def of_unknown_node(message: Message, reply: Message, grid: Tampered) -> Replies:
    foreign = Message(message.content, dst_node_id=4711, message_type=TRAIN)
    return [Message(reply.content, reply_to=foreign)]


def raw_logits(data: bytes) -> Tamper:
    data += hashlib.sha256(data).digest()
    damaged = Array(dtype="uint8", shape=(len(data),), stype=FORMAT, data=data)
    return with_content(lambda content: {**content, PAYLOAD: ArrayRecord({"tensors": damaged})})
