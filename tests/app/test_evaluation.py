"""What is gathered after a round: the clients' scores, and the ensemble of their outputs."""

import pytest
import torch
from torch import Tensor

from fedkd.app.client import EVALUATE
from fedkd.app.evaluation import evaluate_messages, take_evaluations
from fedkd.app.loop import run
from fedkd.app.server import ServerSide
from fedkd.app.wire import to_tensors
from fedkd.engine.local import LocalGrid
from fedkd.learner.base import ClientCard
from fedkd.strategy import Strategy
from tests.app.tampering import EXPERIMENT, error, finish


def test_the_ensemble_sees_logits_in_the_order_of_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    side, grid = ServerSide(EXPERIMENT), LocalGrid(EXPERIMENT)
    side.welcome(grid.send_and_receive(side.hello_messages(grid.get_node_ids())))
    replies = list(grid.send_and_receive(messages := evaluate_messages(side)))
    seen: list[tuple[Tensor, list[ClientCard]]] = []

    def ensemble(self: Strategy, logits: Tensor, clients: list[ClientCard]) -> Tensor:
        seen.append((logits, clients))
        return logits[0]

    monkeypatch.setattr(type(side.strategy), "ensemble", ensemble)

    take_evaluations(side, messages, reversed(replies))

    by_node = {r.metadata.src_node_id: to_tensors(r.content.array_records["extra"])["logits"] for r in replies}
    [(logits, clients)] = seen
    assert torch.equal(logits, torch.stack([by_node[node] for node in (1, 2, 3, 4)]))
    assert len({rows.sum().item() for rows in logits}) == 4
    assert [client.key for client in clients] == ["client-0", "client-1", "client-2", "client-3"]


def test_what_the_clients_send_to_be_measured_is_counted() -> None:
    """40 test samples of 10 classes in float32, from each of 4 clients; EXPERIMENT evaluates rounds 2 and 3."""
    finished = run(LocalGrid(EXPERIMENT), EXPERIMENT)

    assert [record.bytes_measured for record in finished.rounds] == [0, 4 * 40 * 10 * 4, 4 * 40 * 10 * 4]
    assert finished.summary["bytes_measured"] == 2 * 4 * 40 * 10 * 4


def test_outputs_that_do_not_count_are_not_counted() -> None:
    finished = finish(EXPERIMENT, error, EVALUATE, 2)

    assert [record.bytes_measured for record in finished.rounds] == [0, 3 * 40 * 10 * 4, 4 * 40 * 10 * 4]


def test_where_no_ensemble_is_evaluated_nothing_is_sent_for_it() -> None:
    experiment = EXPERIMENT.changed(strategy="fedavg", strategies={})
    finished = run(LocalGrid(experiment), experiment)

    assert [record.bytes_measured for record in finished.rounds] == [0, 0, 0]
