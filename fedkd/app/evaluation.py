"""How good the clients are, their ensemble and the server's own models: asked for and gathered after a round."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from flwr.app import Message
from torch import Tensor

from fedkd import metrics
from fedkd.app.arrivals import NO_REPLY, too_few
from fedkd.app.client import EVALUATE, has_ensemble
from fedkd.app.history import ClientRecord, Metrics, RoundRecord
from fedkd.app.presence import NOT_THERE
from fedkd.app.server import ServerSide
from fedkd.app.validation import read_evaluation
from fedkd.app.wire import EXTRA, payload_bytes
from fedkd.errors import RunError


class Evaluation(NamedTuple):
    """What an evaluation came to.

    Attributes:
        metrics: of the clients, the ensemble and the server's models.
        clients: a record of each client that was measured.
        unmeasured: why the others were not, by key.
        bytes_measured: bytes of the outputs that the measured clients sent.
    """

    metrics: Metrics
    clients: list[ClientRecord]
    unmeasured: dict[str, str]
    bytes_measured: int


def evaluate_messages(side: ServerSide) -> list[Message]:
    """Ask every client that has a model, and is there, how good it is."""
    return [
        side.message_to(participant.node_id, EVALUATE, side.header_for(key))
        for key, participant in side.roster.items()
        if participant.said.models and key not in side.presence.absent
    ]


def take_evaluations(side: ServerSide, messages: Iterable[Message], replies: Iterable[Message]) -> Evaluation:
    """Gather what the clients measured, and measure the teacher ensemble and the server's own models.

    Raises:
        RunError: no client could be measured, and one has said why. Where all are silent, the network may be at fault:
            the round's knowledge counts, and the table has dashes.
    """
    shape = (len(_truth(side)), len(side.federation.classes)) if has_ensemble(side.strategy) else None

    def read(message: Message, key: str) -> tuple[dict[str, float], Tensor | None, int]:
        return *read_evaluation(message, key, side.server.round, shape), payload_bytes(message.content, EXTRA)

    failed: dict[str, str] = {}
    found = dict(side.claims(EVALUATE, messages, replies, read, failed))
    said = {key: reason for key, reason in failed.items() if reason != NO_REPLY}
    if said and not found:
        raise RunError(too_few(side.server.round, 0, 1, said))
    clients = [side.roster[key].record(scores) for key, (scores, *_) in sorted(found.items())]
    logits = {key: outputs for key, (_, outputs, _) in sorted(found.items()) if outputs is not None}
    absent = sorted(key for key in side.presence.absent if side.roster[key].said.models)
    unmeasured = dict(sorted(failed.items())) | dict.fromkeys(absent, NOT_THERE)
    return Evaluation(_metrics(side, clients, logits), clients, unmeasured, sum(size for *_, size in found.values()))


def evaluated(record: RoundRecord, found: Evaluation, refused: Mapping[str, int]) -> RoundRecord:
    """Return a round's record with what its evaluation came to, and all that was refused by then."""
    return replace(
        record,
        metrics=found.metrics,
        unmeasured=found.unmeasured,
        bytes_measured=found.bytes_measured,
        refused=dict(refused),
    )


def _metrics(side: ServerSide, clients: Sequence[ClientRecord], logits: Mapping[str, Tensor]) -> Metrics:
    evaluate, truth, server = side.federation.task.evaluate, _truth(side), side.server
    own = [server.predict([server.models[name]], [side.federation.test(v)])[0] for name, v in server.students.items()]
    with side.server_half("ensemble"):
        cards = [server.clients[key] for key in logits]
        combined = side.strategy.ensemble(torch.stack(list(logits.values())), cards) if logits else None
    return {
        "clients_global": metrics.summarise([client.global_ for client in clients]),
        "clients_local": metrics.summarise([client.local for client in clients]),
        "ensemble_global": None if combined is None else metrics.summarise([evaluate(combined, truth)]),
        "server_global": metrics.summarise([evaluate(rows.cpu(), truth) for rows in own]),
    }


def _truth(side: ServerSide) -> Tensor:
    return side.federation.labels(side.federation.splits.test)
