"""What can happen to a message on its way, by accident or by somebody who knows how to seal one."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.random import Generator

from fedkd.app.state import to_bytes
from fedkd.app.wire import EXTRA, HEADER, PAYLOAD, SEAL, _seal

LARGE = 2_000_000
Values = dict[str, Any]


def copied(records: RecordDict) -> RecordDict:
    found: Values = {}
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            arrays = {key: Array(a.dtype, tuple(a.shape), a.stype, a.data) for key, a in record.items()}
            found[name] = ArrayRecord(arrays)
        else:
            found[name] = ConfigRecord(dict(record))  # type: ignore[arg-type]
    return RecordDict(found)


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
