"""The in-process grid: every client, in this process, without Ray."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedkd import losses
from fedkd.app.client import EVALUATE, HELLO, TRAIN
from fedkd.app.loop import run
from fedkd.app.state import digest
from fedkd.app.wire import header_of, pack
from fedkd.config import Experiment
from fedkd.data.federation import build
from fedkd.engine.local import LocalGrid
from fedkd.flower_internals import ensure_task_identity
from fedkd.knowledge import Prototypes
from fedkd.strategy import Client, MethodCard, Server, Strategy

ROOT = Path(__file__).resolve().parents[2]
SMALL: Mapping[str, Any] = {
    "strategy": "fedmd",
    "rounds": 2,
    "data": {"public": 40, "validation": 1000, "test": 40},
    "federation": {"clients": 4, "architectures": ("mlp", "mlp-deep"), "feature_width": 8},
    "train": {"local_epochs": 1},
    "strategies": {"fedmd": {"transfer_epochs": 1}},
}


def message(type_: str, node: int, **header: int) -> Any:
    from flwr.app import Message

    ensure_task_identity()
    return Message(pack(header), dst_node_id=node, message_type=type_)


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_the_state_that_is_kept_is_the_one_that_the_reply_speaks_of(plan: str) -> None:
    grid = LocalGrid(Experiment(**SMALL, engine={"plan": plan}))
    sent = [message(TRAIN, node, round=1, version=0) for node in grid.get_node_ids()]

    said = {reply.metadata.src_node_id: header_of(reply.content) for reply in grid.send_and_receive(sent)}

    assert sorted(said) == [1, 2, 3, 4]
    for node, key in enumerate(build(Experiment(**SMALL)).holdings, start=1):
        assert said[node]["client"] == key
        assert digest(grid.state_of(key, 1)) == said[node]["state"]


def test_a_state_keeps_no_other_client_alive() -> None:
    grid = LocalGrid(Experiment(**SMALL, engine={"plan": "cohorts"}))
    list(grid.send_and_receive([message(TRAIN, node, round=1, version=0) for node in grid.get_node_ids()]))

    for key in build(Experiment(**SMALL)).holdings:
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in grid.state_of(key, 1).values())


def test_only_training_changes_a_state() -> None:
    grid = LocalGrid(Experiment(**SMALL))
    for type_ in (HELLO, EVALUATE):
        replies = list(grid.send_and_receive([message(type_, 1, round=1, version=0)]))
        assert not replies[0].has_error()

    with pytest.raises(KeyError):
        grid.state_of("client-0", 1)


def test_a_state_that_was_put_back_is_where_the_client_goes_on() -> None:
    first, second = LocalGrid(Experiment(**SMALL)), LocalGrid(Experiment(**SMALL))
    list(first.send_and_receive([message(TRAIN, 1, round=1, version=0)]))

    second.put_state("client-0", 1, first.state_of("client-0", 1))

    went_on = [list(grid.send_and_receive([message(TRAIN, 1, round=2, version=1)])) for grid in (first, second)]
    [ours, other] = [header_of(reply.content) for [reply] in went_on]
    assert ours == other
    assert digest(second.state_of("client-0", 2)) == other["state"]


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_a_grid_may_serve_two_runs(plan: str) -> None:
    experiment = Experiment(**SMALL, engine={"plan": plan})
    grid = LocalGrid(experiment)

    first, second = (run(grid, experiment).summary["digest"] for _ in range(2))

    assert first == second


def test_plans_agree_but_for_rounding() -> None:
    exact = Experiment(**SMALL).changed(
        **{"train.dtype": "float64", "train.optimizer": "sgd", "train.lr": 0.05, "engine.evaluate_every": 1}
    )

    first, second = (
        run(LocalGrid(e), e).rounds[-1].metrics
        for e in (exact, exact.changed(**{"engine.plan": "cohorts", "engine.cohort_size": 2}))
    )

    assert first is not None
    assert second is not None
    assert first["clients_global"] == pytest.approx(second["clients_global"], rel=1e-9)


class WithoutGradients(Strategy):
    """The server's half, which takes the replies as they come, has torch's switches as it likes them."""

    card = MethodCard(title="T", authors="A", year=2020, up=Prototypes)

    def client_round(self, client: Client, received: None) -> Prototypes:
        """Use autograd without the learner."""
        leaf = torch.ones(3, requires_grad=True)
        (2 * leaf).sum().backward()
        client.fit(client.private, losses.cross_entropy)
        return Prototypes.of(client.features(client.private), client.private.labels, client.classes)

    def collect(self, server: Server, replies: Iterator[Any]) -> list[Any]:
        """Ask for the replies without gradients, and in bfloat16."""
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return list(replies)

    def server_round(self, server: Server, replies: list[Any]) -> None:
        """Send nothing."""


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_switches_of_the_servers_half_are_not_the_clients(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment(**{**SMALL, "strategy": f"{__name__}:WithoutGradients", "strategies": {}}).changed(
        **{"data.public": 0, "engine.plan": plan}
    )
    found = run(LocalGrid(experiment), experiment)
    monkeypatch.setattr(WithoutGradients, "collect", Strategy.collect)

    assert not any(record.failed for record in found.rounds)
    assert found.summary["digest"] == run(LocalGrid(experiment), experiment).summary["digest"]


def test_threads_do_not_leak_from_the_run_before() -> None:
    torch.set_num_threads(2)

    LocalGrid(Experiment(**SMALL))

    assert torch.get_num_threads() == 1


def test_ray_is_not_imported() -> None:
    code = (
        "import sys; from fedkd import Experiment, simulate\n"
        "simulate(Experiment(strategy='local', rounds=1, federation={'clients': 2, 'architectures': ['mlp']}))\n"
        "print([name for name in ('ray', 'greenlet') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.stdout == "[]\n", done.stdout + done.stderr
