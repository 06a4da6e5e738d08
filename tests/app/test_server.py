"""The server: its bookkeeping, what a strategy does wrong in its half, and going on after another process."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch
from flwr.app import Message

from fedkd.app.loop import run
from fedkd.app.server import ServerSide
from fedkd.config import Experiment
from fedkd.engine.local import LocalGrid
from fedkd.errors import RunError
from fedkd.knowledge import SoftLabels
from fedkd.learner.base import ClientCard
from fedkd.learner.model import fresh
from fedkd.learner.server import Reply, Server
from fedkd.strategy import Strategy
from strategies.fedmd import FedMD
from tests.app.tampering import (
    EXPERIMENT,
    error,
    finish,
)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return EXPERIMENT


def test_bytes_are_those_of_the_payloads_that_count(experiment: Experiment) -> None:
    finished = finish(experiment, error)

    one = 40 * (10 * 4 + 8)  # M rows of C float32 and one int64 id
    assert [record.bytes_up for record in finished.rounds] == [{"SoftLabels": n * one} for n in (4, 3, 4)]
    assert [record.bytes_down for record in finished.rounds] == [{}, {"SoftLabels": 4 * one}, {"SoftLabels": 4 * one}]


def test_the_strategy_sees_replies_in_the_order_of_the_keys(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = ServerSide(experiment)
    grid = LocalGrid(experiment)
    side.welcome(reversed(list(grid.send_and_receive(side.hello_messages(grid.get_node_ids())))))
    seen: list[Sequence[Reply[SoftLabels]]] = []
    monkeypatch.setattr(type(side.strategy), "server_round", lambda self, server, replies: seen.append(replies))
    messages = side.train_messages(1)

    side.take_replies(messages, reversed(list(grid.send_and_receive(messages))))

    assert [reply.client.key for reply in seen[0]] == ["client-0", "client-1", "client-2", "client-3"]
    assert list(side.server.clients) == [reply.client.key for reply in seen[0]]


def test_a_method_may_sum_up_replies_while_others_are_still_running(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    def passed_on(replies: Iterator[Reply[SoftLabels]]) -> Iterator[Reply[SoftLabels]]:
        yield from replies  # who lets go of this one closes what it has of others

    def collect(self: Strategy, server: Server, replies: Iterator[Reply[SoftLabels]]) -> int:
        for reply in passed_on(replies):
            told.append(f"{reply.client.key} taken")
            if reply.client.key == "client-2":  # the last one is left unread, and counts all the same
                return 3
        return 4

    monkeypatch.setattr(FedMD, "collect", collect)
    monkeypatch.setattr(FedMD, "server_round", lambda self, server, collected: told.append(collected))
    side, grid = ServerSide(experiment), LocalGrid(experiment)
    side.welcome(grid.send_and_receive(side.hello_messages(grid.get_node_ids())))
    messages = side.train_messages(1)

    def coming() -> Iterator[Message]:
        for reply in grid.send_and_receive(messages):
            told.append(f"node {reply.metadata.src_node_id}")
            yield reply

    record = side.take_replies(messages, coming())

    expected = [text for k in range(3) for text in (f"node {k + 1}", f"client-{k} taken")]
    assert told == [*expected, "node 4", 3]
    assert list(record.participants) == [f"client-{k}" for k in range(4)]


@pytest.mark.parametrize("returns", [True, False])
def test_a_forgotten_return_is_told(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, returns: bool
) -> None:
    if not returns:
        monkeypatch.setattr(FedMD, "server_round", lambda self, server, replies: None)
    side, grid = ServerSide(experiment), LocalGrid(experiment)
    side.welcome(grid.send_and_receive(side.hello_messages(grid.get_node_ids())))
    messages = side.train_messages(1)
    side.take_replies(messages, grid.send_and_receive(messages))
    said = [] if returns else ["round 1: server_round returned nothing, so no client receives the card's SoftLabels"]
    assert caplog.messages == said


def test_who_is_not_there_holds_up_nobody(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def collect(self: Strategy, server: Server, replies: Iterator[Reply[SoftLabels]]) -> None:
        told.extend(f"{reply.client.key} after {told.count('came')}" for reply in replies)

    monkeypatch.setattr(FedMD, "collect", collect)
    monkeypatch.setattr(FedMD, "server_round", lambda self, server, collected: None)
    side, grid = ServerSide(experiment), LocalGrid(experiment)
    side.welcome(grid.send_and_receive(side.hello_messages(grid.get_node_ids())))
    side.presence.absent = {"client-0"}
    messages = side.train_messages(1)

    def coming() -> Iterator[Message]:
        for reply in grid.send_and_receive(messages):
            told.append("came")
            yield reply

    record = side.take_replies(messages, coming())

    assert [text for text in told if text != "came"] == [f"client-{k} after {k}" for k in (1, 2, 3)]
    assert list(record.failed) == ["client-0"]


def test_a_grid_that_breaks_is_not_blamed_on_the_strategy(experiment: Experiment) -> None:
    side, grid = ServerSide(experiment), LocalGrid(experiment)
    side.welcome(grid.send_and_receive(side.hello_messages(grid.get_node_ids())))
    messages = side.train_messages(1)

    def coming() -> Iterator[Message]:
        yield from list(grid.send_and_receive(messages))[:2]
        raise ConnectionError("the line is cut")

    with pytest.raises(ConnectionError, match="the line is cut"):
        side.take_replies(messages, coming())


def test_a_strategy_cannot_hide_that_the_grid_broke_or_that_too_few_replied(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(self: Strategy, server: Server, replies: Iterable[Any]) -> list[Any]:
        kept: list[Any] = []
        with suppress(Exception):
            kept.extend(replies)
        return kept

    side, grid = ServerSide(experiment), LocalGrid(experiment)
    side.welcome(grid.send_and_receive(side.hello_messages(grid.get_node_ids())))
    monkeypatch.setattr(type(side.strategy), "collect", careless)
    messages = side.train_messages(1)

    def coming() -> Iterator[Message]:
        yield from list(grid.send_and_receive(messages))[:2]
        raise ConnectionError("the line is cut")

    with pytest.raises(ConnectionError, match="the line is cut"):
        side.take_replies(messages, coming())
    with pytest.raises(RunError, match="no client sent a usable reply"):
        side.take_replies(messages, [])

    def full(key: str, round_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(side.arrivals, "_on_counted", full)
    messages = side.train_messages(2)
    with pytest.raises(OSError, match="the disk is full"):
        side.take_replies(messages, grid.send_and_receive(messages))


def test_a_method_may_collect_lazily(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[list[str]] = []

    def lazy(self: Strategy, server: Server, replies: Iterable[Any]) -> Iterator[str]:
        return (reply.client.key for reply in replies)

    side, grid = ServerSide(experiment), LocalGrid(experiment)
    side.welcome(grid.send_and_receive(side.hello_messages(grid.get_node_ids())))
    monkeypatch.setattr(type(side.strategy), "collect", lazy)
    monkeypatch.setattr(type(side.strategy), "server_round", lambda self, server, keys: collected.append(list(keys)))
    messages = side.train_messages(1)
    side.take_replies(messages, grid.send_and_receive(messages))

    assert collected == [sorted(side.roster)]


def test_what_a_method_draws_while_it_collects_does_not_depend_on_the_grid(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []

    def choosy(self: Strategy, server: Server, replies: Iterable[Any]) -> list[Any]:
        kept = []
        for reply in replies:
            drawn.append(float(torch.rand(1)) + random.random())  # noqa: S311
            kept.append(reply)
        return kept

    for lazily in (True, False):
        side, grid = ServerSide(experiment), LocalGrid(experiment)
        side.welcome(grid.send_and_receive(side.hello_messages(grid.get_node_ids())))
        monkeypatch.setattr(type(side.strategy), "collect", choosy)
        messages = side.train_messages(1)
        replies = grid.send_and_receive(messages)
        side.take_replies(messages, replies if lazily else list(replies))

    half = len(drawn) // 2
    assert half > 1
    assert drawn[:half] == drawn[half:]


def test_the_digest_covers_models_state_knowledge_and_clients(experiment: Experiment) -> None:
    def digest_after(change: Callable[[ServerSide], None]) -> str:
        side, grid = ServerSide(experiment), LocalGrid(experiment)
        side.welcome(grid.send_and_receive(side.hello_messages(grid.get_node_ids())))
        messages = side.train_messages(1)
        replies = list(grid.send_and_receive(messages))
        change(side)
        return side.take_replies(messages, replies).digest

    def other_consensus(side: ServerSide) -> None:
        ids = side.federation.public_subset(1)
        vars(side.strategy)["server_round"] = lambda server, replies: SoftLabels(ids, torch.zeros(40, 10))

    changes: list[Callable[[ServerSide], None]] = [
        lambda side: None,
        lambda side: side.server.state.update(x=torch.ones(1)),
        lambda side: side.server.models.update(
            new=fresh(side.federation.model_spec("mlp", "image"), 0, torch.empty(0))
        ),
        lambda side: side._state_digests.update({"client-9": "0"}),
        lambda side: setattr(side, "digest", "before"),
        other_consensus,
    ]

    digests = [digest_after(change) for change in changes]

    assert digests[0] == digest_after(changes[0])
    assert len(set(digests)) == len(changes)


def test_what_the_server_half_draws_depends_on_the_seed_alone(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draws(self: Strategy, server: Server, replies: object) -> None:
        server.state["noise"] = torch.randn(3)

    monkeypatch.setattr(FedMD, "server_round", draws)
    digests = set()
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        digests.add(run(LocalGrid(experiment), experiment).summary["digest"])
    assert len(digests) == 1
    other = experiment.changed(seed=5)
    assert run(LocalGrid(other), other).summary["digest"] not in digests


def test_what_a_download_draws_depends_on_its_client_alone(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[dict[tuple[int, str], list[float]]] = []
    for more in (0, 5):

        def draws(
            self: Strategy, server: Server, client: ClientCard, common: SoftLabels | None, more: int = more
        ) -> SoftLabels | None:
            runs[-1][server.round, client.key] = torch.randn(3).tolist()
            torch.randn(more)  # must not reach the next client
            return common

        runs.append({})
        monkeypatch.setattr(FedMD, "download", draws)
        run(LocalGrid(experiment), experiment)

    assert runs[0] == runs[1]
    assert len({tuple(values) for values in runs[0].values()}) == len(runs[0]) > 2


# -- a strategy's mistakes on the server


def fails(self: Strategy, server: Server, replies: object) -> None:
    raise ZeroDivisionError("of my own")


def exits(self: Strategy, server: Server, replies: object) -> None:
    raise SystemExit(0)


def counts(self: Strategy, server: Server, replies: object) -> None:
    server.state["n"] = 3  # type: ignore[assignment]


def shortens(self: Strategy, server: Server, replies: object) -> SoftLabels:
    return server.soft_labels(torch.zeros(3, 10))


def keeps(self: Strategy, server: Server, replies: object) -> None:
    self.last = replies


@pytest.mark.parametrize(
    ("method", "mistake", "message"),
    [
        ("server_round", fails, r"round 1: the strategy's server half failed.(?s:.)*in fails(?s:.)*of my own"),
        ("server_round", keeps, r"FedMD: a strategy keeps nothing on self but its settings, found self.last; keep"),
        ("download", lambda self, *others: torch.zeros(1), "download: the card says SoftLabels, found Tensor"),
        ("server_round", lambda self, *others: torch.zeros(1), "server_round: expected knowledge, .*found Tensor"),
        ("server_round", exits, r"the strategy's server half failed(?s:.)*SystemExit"),
        ("server_round", counts, r"server.state\['n'\]: expected a tensor, found int"),
        ("server_round", shortens, r"soft_labels: expected logits of shape \(40, 10\), .* found \(3, 10\)"),
    ],
)
def test_a_mistake_in_the_server_half_ends_the_run_with_its_traceback(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, method: str, mistake: Callable[..., Any], message: str
) -> None:
    monkeypatch.setattr(FedMD, method, mistake)
    with pytest.raises(RunError, match=message):
        run(LocalGrid(experiment), experiment)


# --- going on after another process


def test_a_new_server_goes_on_where_the_old_one_came_to(experiment: Experiment) -> None:
    side, grid, calls = ServerSide(experiment), LocalGrid(experiment), list[int]()
    side.welcome(grid.send_and_receive(side.hello_messages(grid.get_node_ids())))
    messages = side.train_messages(1)
    record = side.take_replies(messages, grid.send_and_receive(messages))
    snapshot = side.snapshot(record, [])
    expected = side.take_replies(again := side.train_messages(2), list(grid.send_and_receive(again)))

    new, other = ServerSide(experiment), LocalGrid(experiment)
    for key, version in snapshot.versions.items():
        other.put_state(key, version, grid.state_of(key, version))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(new.strategy), "server_setup", lambda self, server: calls.append(1))
        new.welcome(other.send_and_receive(new.hello_messages(other.get_node_ids())), snapshot)
    found = new.take_replies(again := new.train_messages(2), list(other.send_and_receive(again)))

    assert calls == []
    assert found == expected
    assert new.versions == side.versions
    assert snapshot.record.digest == record.digest  # the old server's later rounds do not show in it
    assert snapshot.versions == dict.fromkeys(side.roster, 1)
