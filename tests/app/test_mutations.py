"""A thousand messages that something happened to, at the doors of client and server: none gets in, none breaks them."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.random import Generator

from fedkd import config
from fedkd.app import flower
from fedkd.app.evaluation import evaluate_messages, take_evaluations
from fedkd.app.server import ServerSide
from fedkd.app.state import to_bytes
from fedkd.app.wire import EXTRA, HEADER, PAYLOAD, SEAL, _seal, header_of
from fedkd.config import parse
from fedkd.data.dividing import divide
from fedkd.errors import RunError
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
LARGE = 2_000_000
VICTIM = "client-1"
Values = dict[str, Any]


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


def copied(records: RecordDict) -> RecordDict:
    found: Values = {}
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            arrays = {key: Array(a.dtype, tuple(a.shape), a.stype, a.data) for key, a in record.items()}
            found[name] = ArrayRecord(arrays)
        else:
            found[name] = ConfigRecord(dict(record))  # type: ignore[arg-type]
    return RecordDict(found)


# --- what can happen to a message


def flip_a_bit(records: Values, source: Generator) -> None:
    with_data(records, source, lambda data: flipped(data, source))


def cut_the_data(records: Values, source: Generator) -> None:
    with_data(records, source, lambda data: data[: source.integers(0, len(data))])


def add_data(records: Values, source: Generator) -> None:
    with_data(records, source, lambda data: data + source.bytes(int(source.integers(1, 100))))


def replace_the_data(records: Values, source: Generator) -> None:
    with_data(records, source, lambda data: source.bytes(len(data)))


def claim_a_huge_header(records: Values, source: Generator) -> None:
    with_data(records, source, lambda data: int(source.integers(2**20, 2**62)).to_bytes(8, "little") + data[8:])


def retype_the_array(records: Values, source: Generator) -> None:
    name = array_in(records, source)
    [(key, array)] = records[name].items()
    other = [
        Array("float32", tuple(array.shape), array.stype, array.data),
        Array(array.dtype, (2**40, 2**20), array.stype, array.data),
        Array(array.dtype, tuple(array.shape), "numpy.ndarray", array.data),
        Array(array.dtype, tuple(array.shape), "pickle", array.data),
    ][source.integers(4)]
    records[name] = ArrayRecord({key: other})


def rename_the_array(records: Values, source: Generator) -> None:
    name = array_in(records, source)
    [(_, array)] = records[name].items()
    records[name] = ArrayRecord({"tensor": array})


def add_an_array(records: Values, source: Generator) -> None:
    name = array_in(records, source)
    records[name] = ArrayRecord({**records[name], "more": Array(np.zeros(3))})


def drop_a_record(records: Values, source: Generator) -> None:
    del records[pick(source, records)]


def rename_a_record(records: Values, source: Generator) -> None:
    records["other"] = records.pop(pick(source, records))


def add_a_record(records: Values, source: Generator) -> None:
    more: Values = {"metrics": MetricRecord({"x": 1}), "more": ConfigRecord({"x": b"x" * LARGE}), "y": ArrayRecord()}
    name = pick(source, more)
    records[name] = more[name]


def retype_a_record(records: Values, source: Generator) -> None:
    name = pick(source, records)
    records[name] = [MetricRecord({"round": 2}), ConfigRecord({"round": 2}), ArrayRecord()][source.integers(3)]


def drop_a_field(records: Values, source: Generator) -> None:
    with_header(records, lambda header: header.pop(pick(source, header)))


def change_a_field(records: Values, source: Generator) -> None:
    with_header(records, lambda header: header.update({pick(source, header): anything(source)}))


def add_a_field(records: Values, source: Generator) -> None:
    with_header(records, lambda header: header.update({f"x{source.integers(100)}": anything(source)}))


def add_many_fields(records: Values, source: Generator) -> None:
    with_header(records, lambda header: header.update({f"global/{n}": 0.5 for n in range(20_000)}))


def count_up(records: Values, source: Generator) -> None:
    def change(header: Values) -> None:
        name = pick(source, {name for name, value in header.items() if type(value) is int})
        header[name] += int(source.choice([-(2**40), -1, 1, 2**40]))

    with_header(records, change)


Change = Callable[[Values, Generator], None]
OF_ARRAYS: tuple[Change, ...] = (
    *(flip_a_bit, cut_the_data, add_data, replace_the_data, claim_a_huge_header, retype_the_array, rename_the_array),
    add_an_array,
)
OF_ANY: tuple[Change, ...] = (
    *(drop_a_record, rename_a_record, add_a_record, retype_a_record),
    *(drop_a_field, change_a_field, add_a_field, add_many_fields, count_up),
)


def mutated(records: RecordDict, source: Generator) -> RecordDict:
    """Return a message's records after something happened to them."""
    found: Values = dict(copied(records))
    fitting = (*OF_ARRAYS, *OF_ANY) if {PAYLOAD, EXTRA} & set(found) else OF_ANY
    fitting[source.integers(len(fitting))](found, source)
    return RecordDict(found)


def anything(source: Generator) -> Any:
    values = [
        0,
        -1,
        2**62,
        1.5,
        float("nan"),
        float("inf"),
        True,
        "",
        "client-0",
        "x" * LARGE,
        b"\0",
        [1, 2],
        [0.5] * 9,
    ]
    return [*values, ["a"] * 1000, "../../../etc", "SoftLabels", "Bundle"][source.integers(len(values) + 4)]


def pick(source: Generator, names: Any) -> str:
    ordered = sorted(names)
    return str(ordered[source.integers(len(ordered))])


def flipped(data: bytes, source: Generator) -> bytes:
    changed = bytearray(data)
    changed[source.integers(len(data))] ^= 1 << int(source.integers(8))
    return bytes(changed)


def array_in(records: Values, source: Generator) -> str:
    return pick(source, {PAYLOAD, EXTRA} & set(records))


def with_data(records: Values, source: Generator, change: Callable[[bytes], bytes]) -> None:
    name = array_in(records, source)
    [(key, array)] = records[name].items()
    data = change(array.data)
    records[name] = ArrayRecord({key: Array(array.dtype, (len(data),), array.stype, data)})


def with_header(records: Values, change: Callable[[Values], Any]) -> None:
    header = dict(records[HEADER])
    change(header)
    records[HEADER] = ConfigRecord(header)


def same(a: RecordDict, b: RecordDict) -> bool:
    """Whether nothing has changed after all, such as a field set to what it was."""
    return set(a) == set(b) and all(repr(a[name]) == repr(b[name]) and type(a[name]) is type(b[name]) for name in a)


def replace_the_tensors(records: Values, source: Generator) -> None:
    shape = [(), (0,), (40, 10), (40, 0), (1, 10), (40, 9), (2, 20, 10)][source.integers(7)]
    types = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64)
    name = ["logits", "probabilities", "values", "x/y", ""][source.integers(5)]
    tensors = {name: torch.zeros(shape, dtype=types[source.integers(6)]), "ids": torch.zeros(3, dtype=torch.int64)}
    with_data(records, source, lambda data: to_bytes(tensors) + data[-32:])


def mutated_and_sealed(records: RecordDict, source: Generator) -> RecordDict:
    """Return a message's records after somebody has changed them who knows how to seal: no checksum tells."""
    found: Values = dict(copied(records))
    if {PAYLOAD, EXTRA} & set(found) and source.integers(3) == 0:
        replace_the_tensors(found, source)
    else:
        found = dict(mutated(records, source))
    for name, record in found.items():
        if isinstance(record, ArrayRecord):
            found[name] = ArrayRecord({key: summed(array) for key, array in record.items()})
    if isinstance(header := found.get(HEADER), ConfigRecord):
        fields = {name: value for name, value in header.items() if name != SEAL}
        found[HEADER] = ConfigRecord({**fields, SEAL: _seal(fields)})
    return RecordDict(found)


def summed(array: Array) -> Array:
    """Return an array whose last 32 bytes are the SHA-256 of the others."""
    content = array.data[:-32]
    return Array(array.dtype, tuple(array.shape), array.stype, content + hashlib.sha256(content).digest())


def changed_messages(
    message: Message, count: int, seed: int, change: Callable[[RecordDict, Generator], RecordDict] = mutated
) -> Iterator[Message]:
    source = np.random.default_rng(seed)
    for _ in range(count):
        records = change(message.content, source)
        while same(records, copied(message.content)):
            records = change(message.content, source)
        yield Message(records, metadata=message.metadata)  # type: ignore[call-overload]


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
