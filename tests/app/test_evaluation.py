"""What is gathered after a round: the clients' scores, and the ensemble of their outputs."""

import pytest
import torch
from torch import Tensor

from fedkd.app.evaluation import evaluate_messages, take_evaluations
from fedkd.app.server import ServerSide
from fedkd.app.wire import to_tensors
from fedkd.engine.local import LocalGrid
from fedkd.learner.base import ClientCard
from fedkd.strategy import Strategy
from tests.app.tampering import EXPERIMENT


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
