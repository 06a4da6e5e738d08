"""A thousand messages that something happened to, at the doors of client and server: none gets in, none breaks them."""

import resource
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
from fedkd.app.wire import EXTRA, HEADER, PAYLOAD
from fedkd.config import parse
from fedkd.data.dividing import divide
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


def changed_messages(message: Message, count: int, seed: int) -> Iterator[Message]:
    source = np.random.default_rng(seed)
    for _ in range(count):
        records = mutated(message.content, source)
        while same(records, copied(message.content)):
            records = mutated(message.content, source)
        yield Message(records, metadata=message.metadata)  # type: ignore[call-overload]


@pytest.fixture(autouse=True)
def _memory_is_bounded() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


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
        parties.side.refused.clear()
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
