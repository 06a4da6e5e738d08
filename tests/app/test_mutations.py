"""A thousand messages that something happened to, at the doors of client and server: none gets in, none breaks them."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message

from fedkd import config
from fedkd.app import flower
from fedkd.app.evaluation import evaluate_messages, take_evaluations
from fedkd.app.server import ServerSide
from fedkd.app.wire import HEADER, header_of
from fedkd.config import parse
from fedkd.data.dividing import divide
from fedkd.errors import RunError
from tests.app.mutations import changed_messages, copied, mutated_and_sealed
from tests.app.nodes import Nodes, read_configs, run_config

SMALL: Mapping[str, Any] = {
    "strategy": "fedmd",
    "rounds": 2,
    "data": {"public": 40, "validation": 1300, "test": 40, "local_test": 0.0},
    "federation": {"clients": 3, "architectures": ("mlp",), "feature_width": 8},
    "train": {"local_epochs": 1},
    "strategies": {"fedmd": {"transfer_epochs": 1, "digest_epochs": 1}},
}
MOST_MEMORY = 200_000  # KiB
VICTIM = "client-1"


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Parties]":
    yield Parties(tmp_path_factory.mktemp("parties"))
    flower._client_side.cache_clear()


class Parties:
    """A server and three nodes after their first round."""

    def __init__(self, folder: Path) -> None:
        paths = divide(parse(SMALL, {}, "test"), folder / "files")
        experiment = config.load(folder / "files" / "experiment.toml", {"federation.min_clients": 2})
        self.store = folder / "files" / "store"
        self.side = ServerSide(experiment)
        self.nodes = Nodes(run_config(experiment, folder / "run"), read_configs(paths.values()))
        self.hello = self.side.hello_messages(self.nodes.get_node_ids())
        self.introductions = self.answers(self.hello)
        self.side.welcome(self.introductions)
        first = self.side.train_messages(1)
        self.side.take_replies(first, self.answers(first))
        self.train, self.evaluate = self.side.train_messages(2), evaluate_messages(self.side)
        self.node = self.side.roster[VICTIM].node_id

    def answers(self, messages: list[Message]) -> list[Message]:
        return [travelled(reply) for reply in self.nodes.send_and_receive(map(travelled, messages))]

    def mine(self, messages: list[Message]) -> Message:
        return next(m for m in messages if self.node in (m.metadata.dst_node_id, m.metadata.src_node_id))


def travelled(message: Message) -> Message:
    """Return a message as it comes out of a transport: with bytes for tensors."""
    return Message(copied(message.content), metadata=message.metadata)  # type: ignore[call-overload, no-any-return]


def peak() -> int:
    """Return the most memory that this process has had since :func:`forget_the_peak`, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def forget_the_peak() -> None:
    """Let the peak be what the process has now: an earlier test may have had more than any message could take."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


needs_peak = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no Linux: no peak to forget")


@pytest.fixture(autouse=True)
def _memory_is_bounded() -> Iterator[None]:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        yield
        return
    forget_the_peak()
    before = peak()
    yield
    assert peak() - before < MOST_MEMORY


@needs_peak
def test_a_peak_is_seen_after_a_higher_one() -> None:
    del [bytearray(3 * MOST_MEMORY * 1024)][0]
    forget_the_peak()
    before = peak()
    del [bytearray(2 * MOST_MEMORY * 1024)][0]

    assert peak() - before > MOST_MEMORY
    forget_the_peak()


# --- the client's door


@pytest.mark.parametrize("kind", ["hello", "train", "evaluate"])
def test_a_node_answers_a_mutated_message_with_an_error(kind: str, parties: Parties) -> None:
    message = parties.mine(getattr(parties, kind))
    before = {path: path.read_bytes() for path in parties.store.rglob("*") if path.is_file()}

    for changed in changed_messages(message, 170, seed=len(kind)):
        [reply] = parties.nodes.send_and_receive([changed])
        assert reply.has_error(), changed.content
        assert len(reply.error.reason) < 5_000

    assert {path: path.read_bytes() for path in parties.store.rglob("*") if path.is_file()} == before
    [reply] = parties.nodes.send_and_receive([travelled(message)])
    assert not reply.has_error()


# --- the server's door


def test_the_server_takes_no_mutated_introduction(parties: Parties) -> None:
    others = [m for m in parties.introductions if m.metadata.src_node_id != parties.node]
    for changed in changed_messages(parties.mine(parties.introductions), 170, seed=4):
        side = parties.side
        side.welcome([changed, *others])
        assert sorted(side.roster) == ["client-0", "client-2"], changed.content
    parties.side.welcome(parties.introductions)
    assert VICTIM in parties.side.roster


def test_the_server_takes_no_mutated_reply(parties: Parties) -> None:
    replies = parties.answers(parties.train)
    others = [m for m in replies if m.metadata.src_node_id != parties.node]
    for changed in changed_messages(parties.mine(replies), 170, seed=5):
        record = parties.side.take_replies(parties.train, [changed, *others])
        assert list(record.failed) == [VICTIM], changed.content
        assert len(record.failed[VICTIM]) < 1_000
        assert sum(record.refused.values()) == 1
        parties.side.arrivals.refused.clear()
    assert not parties.side.take_replies(parties.train, replies).failed


def test_the_server_takes_no_mutated_evaluation(parties: Parties) -> None:
    replies = parties.answers(parties.evaluate)
    others = [m for m in replies if m.metadata.src_node_id != parties.node]
    for changed in changed_messages(parties.mine(replies), 170, seed=6):
        _, clients, unmeasured, _ = take_evaluations(parties.side, parties.evaluate, [changed, *others])
        assert list(unmeasured) == [VICTIM], changed.content
        assert [client.client for client in clients] == ["client-0", "client-2"]
        assert len(unmeasured[VICTIM]) < 1_000
    assert not take_evaluations(parties.side, parties.evaluate, replies).unmeasured
    assert torch.get_num_threads() == 1


# --- by somebody who knows how to seal: refused, or harmless


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Parties]:
    """Return parties of a test's own: what is sealed may get in, and leave its traces."""
    yield Parties(tmp_path)
    flower._client_side.cache_clear()


def said_by(message: Message) -> object:
    """Return the name that a message's header gives."""
    header = message.content.get(HEADER)
    return header.get("client") if isinstance(header, ConfigRecord) else None


def sealed(message: Message, seed: int, count: int = 170) -> Iterator[Message]:
    return changed_messages(message, count, seed, mutated_and_sealed)


@pytest.mark.parametrize("kind", ["hello", "train", "evaluate"])
def test_a_node_answers_what_was_sealed_anew_or_says_why_not(kind: str, own: Parties) -> None:
    refused = 0
    for changed in sealed(own.mine(getattr(own, kind)), seed=7 + len(kind), count=100):
        [reply] = own.nodes.send_and_receive([changed])
        refused += reply.has_error()
        assert reply.has_error() or header_of(reply.content)["client"] == VICTIM
        assert not reply.has_error() or len(reply.error.reason) < 20_000

    assert refused > 20, "it is looked at"
    names = [str(path.relative_to(own.store)) for path in own.store.rglob("*") if path.is_file()]
    assert all(re.fullmatch(r"[0-9a-f]{32}/client-\d\.-?\d+\.safetensors", name) for name in names), names


def test_the_server_takes_no_impossible_introduction(own: Parties) -> None:
    others = [m for m in own.introductions if m.metadata.src_node_id != own.node]
    before, inside = dict(own.side.roster), 0
    names = [key for key in before if key != VICTIM]  # no set: what is said may have no hash
    for changed in sealed(own.mine(own.introductions), seed=17):
        if said_by(changed) in names:  # no key is bound to a name: neither of the two takes part
            with pytest.raises(RunError, match="expected one client of this name, found 2"):
                own.side.welcome([changed, *others])
            continue
        own.side.welcome([changed, *others])
        found = dict(own.side.roster)
        assert {key: found.pop(key, None) for key in ("client-0", "client-2")} == {
            key: before[key] for key in ("client-0", "client-2")
        }
        inside += len(found)
        for participant in found.values():
            assert sum(participant.said.label_counts) == participant.said.card.num_samples > 0
            assert participant.said.card.architecture == "mlp"
    assert 0 < inside < 170, "some are harmless, such as those with a further field"


def test_a_sealed_reply_costs_its_client_the_round_at_most(own: Parties) -> None:
    replies = own.answers(own.train)
    others = [m for m in replies if m.metadata.src_node_id != own.node]
    inside = 0
    for changed in sealed(own.mine(replies), seed=18):
        record = own.side.take_replies(own.train, [changed, *others])
        assert {"client-0", "client-2"} <= set(record.participants)
        assert set(record.failed) == {VICTIM} - set(record.participants)
        inside += VICTIM in record.participants
    assert 0 < inside < 170
    assert not own.side.take_replies(own.train, replies).failed


def test_a_sealed_evaluation_spoils_nobody_elses(own: Parties) -> None:
    replies = own.answers(own.evaluate)
    others = [m for m in replies if m.metadata.src_node_id != own.node]
    clean = {client.client: client for client in take_evaluations(own.side, own.evaluate, replies).clients}
    inside = 0
    for changed in sealed(own.mine(replies), seed=19):
        found = take_evaluations(own.side, own.evaluate, [changed, *others])
        measured = {client.client: client for client in found.clients}
        assert all(measured[key] == clean[key] for key in ("client-0", "client-2"))
        assert set(found.unmeasured) == {VICTIM} - set(measured)
        inside += VICTIM in measured
        assert all(0 <= scores["accuracy"] <= 1 for scores in found.metrics.values() if scores)
    assert 0 < inside < 170
