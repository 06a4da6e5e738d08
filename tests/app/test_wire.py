"""What crosses the wire: every type survives, and nothing that is sent is ever executed or believed."""

import hashlib
import io
import json
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry
from torch import Tensor

from fedkd.app.wire import (
    EXTRA,
    FORMAT,
    HEADER,
    PAYLOAD,
    expect_records,
    expect_sealed,
    header_of,
    knowledge_of,
    number,
    pack,
    tensors_in,
    to_arrays,
    to_tensors,
    without_tensors,
)
from fedkd.flower_internals import ensure_task_identity
from fedkd.knowledge import Bundle, KnowledgeError, Prototypes, SoftLabels, Weights

DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
]


def raw(data: bytes, stype: str = FORMAT, name: str = "tensors", *, checksum: bytes | None = None) -> ArrayRecord:
    data += hashlib.sha256(data).digest() if checksum is None else checksum
    return ArrayRecord({name: Array(dtype="uint8", shape=(len(data),), stype=stype, data=data)})


def by_hand(header: object, content: bytes) -> bytes:
    """Return a safetensors file with a header of one's own: its size in eight bytes, JSON, content."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def entry(dtype: str, shape: list[object], start: int, end: int) -> dict[str, object]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


def over_the_wire(records: RecordDict) -> RecordDict:
    """Send records through Flower's own serialisation, as between two processes."""
    ensure_task_identity()
    sent: dict[str, bytes] = {}

    def deflate(part: object) -> None:
        for child in (part.children or {}).values():  # type: ignore[attr-defined]
            deflate(child)
        sent[part.object_id] = part.deflate()  # type: ignore[attr-defined]

    deflate(records)

    def inflate(part: object) -> object:
        children = {key: inflate(child) for key, child in (part.children or {}).items()}  # type: ignore[attr-defined]
        class_ = inflatable_class_registry[type(part).__qualname__]  # as the receiver finds it
        return class_.inflate(sent[part.object_id], children)  # type: ignore[attr-defined]

    received = inflate(records)
    assert isinstance(received, RecordDict)
    return received


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)], ids=str)
def test_every_type_and_shape_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 5).to(dtype)

    received = over_the_wire(RecordDict({PAYLOAD: to_arrays({"x": values})}))

    found = to_tensors(received.array_records[PAYLOAD])["x"]
    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    assert torch.equal(found, values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_bits_of_special_values_come_back(dtype: torch.dtype) -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, torch.finfo(dtype).tiny]).to(dtype)

    found = to_tensors(to_arrays({"x": values}))["x"]

    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), values.view(torch.uint8))


def test_bfloat16_keeps_its_two_bytes() -> None:
    data = to_arrays({"x": torch.ones(1000, dtype=torch.bfloat16)})["tensors"].data

    assert 2000 <= len(data) < 2200


@pytest.mark.parametrize(
    "values",
    [torch.arange(6.0).reshape(2, 3).T, torch.arange(6.0)[::2], torch.ones(3, requires_grad=True), torch.ones(1, 4)[0]],
    ids=["transposed", "strided", "with gradient", "view"],
)
def test_the_layout_in_memory_does_not_matter(values: Tensor) -> None:
    assert torch.equal(to_tensors(to_arrays({"x": values}))["x"], values.detach())


def test_what_is_received_may_be_changed_without_changing_the_message() -> None:
    record = to_arrays({"x": torch.zeros(3)})

    to_tensors(record)["x"].add_(1)

    assert torch.equal(to_tensors(record)["x"], torch.zeros(3))


def test_a_type_that_does_not_travel_is_refused_where_it_is_packed() -> None:
    with pytest.raises(TypeError, match=r"x: expected a type that can be stored, found torch\.complex128"):
        to_arrays({"x": torch.ones(2, dtype=torch.complex128)})
    with pytest.raises(TypeError, match=r"x: expected a type that can be stored, found torch\.sparse_coo"):
        to_arrays({"x": torch.eye(2).to_sparse()})


def test_tensors_that_are_handed_over_are_the_receivers_own() -> None:
    sent = torch.zeros(3)
    found = to_tensors(to_arrays({"x": sent}))["x"]
    found.add_(1)
    assert torch.equal(sent, torch.zeros(3))


def test_a_payload_is_what_it_was_when_it_was_packed() -> None:
    buffer = torch.zeros(3)
    record = to_arrays({"x": buffer[:]})
    buffer.fill_(7)
    assert torch.equal(to_tensors(record)["x"], torch.zeros(3))
    assert torch.equal(to_tensors(raw(record["tensors"].data, checksum=b""))["x"], torch.zeros(3))


def test_conjugate_views_travel_as_bytes_too() -> None:
    values = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    record = to_arrays({"x": values.conj()})
    travelled = raw(record["tensors"].data, checksum=b"")
    assert to_tensors(record)["x"].tolist() == to_tensors(travelled)["x"].tolist() == [1 - 2j, 3 + 4j]


def test_a_message_comes_apart_into_tensors_and_the_rest() -> None:
    ensure_task_identity()
    message = Message(
        pack({"round": 3}, SoftLabels(torch.arange(2), torch.ones(2, 4))), dst_node_id=1, message_type="train"
    )
    rest, records = without_tensors(message)
    assert set(rest.content) == {HEADER}
    assert header_of(rest.content)["round"] == 3
    assert {name: set(tensors_in(record)) for name, record in records.items()} == {PAYLOAD: {"ids", "logits"}}
    assert set(message.content) == {HEADER, PAYLOAD}
    failed = Message(Error(code=0, reason="no"), reply_to=message)
    assert without_tensors(failed) == (failed, {})


def test_tensors_travel_as_bytes_where_nobody_takes_them_out() -> None:
    found = pickle.loads(pickle.dumps(to_arrays({"x": torch.ones(2)})))  # noqa: S301 - our own bytes
    assert type(found["tensors"]) is Array
    assert torch.equal(to_tensors(found)["x"], torch.ones(2))


def test_knowledge_comes_back_with_its_header() -> None:
    bundle = Bundle(
        {
            "soft": SoftLabels(torch.tensor([5, 2]), torch.randn(2, 3)),
            "protos": Prototypes(torch.randn(3, 4), torch.tensor([1, 0, 2])),
            "weights": Weights({"features.0.weight": torch.randn(2, 2), "n": torch.tensor(3)}),
        }
    )

    records = over_the_wire(pack({"round": 3, "client": "ünïcode", "version": 0}, bundle))

    header = header_of(records)
    expect_sealed(header)
    assert {**header, "seal": ""} == {"round": 3, "client": "ünïcode", "version": 0, "kind": "Bundle", "seal": ""}
    found, sent = knowledge_of(records), bundle.to_tensors()
    assert isinstance(found, Bundle)
    assert found.to_tensors().keys() == sent.keys()
    assert all(torch.equal(found.to_tensors()[name], tensor) for name, tensor in sent.items())
    assert found.num_bytes == bundle.num_bytes


def test_nothing_travels_as_nothing() -> None:
    records = over_the_wire(pack({"round": 1}))

    assert knowledge_of(records) is None
    assert not records.array_records


def test_packing_does_not_change_the_caller() -> None:
    header, values = {"round": 1}, torch.ones(2)

    records = pack(header, SoftLabels(torch.tensor([1, 2]), values[:, None]))
    records.config_records[HEADER]["round"] = 9

    assert header == {"round": 1}


# --- messages that lack something


def test_a_message_without_header() -> None:
    with pytest.raises(KnowledgeError, match=r"expected a record named 'header', found \['other'\]"):
        header_of(RecordDict({"other": ConfigRecord({"round": 1})}))


def test_a_message_without_its_payload() -> None:
    with pytest.raises(KnowledgeError, match="expected a record named 'payload' for a payload of kind 'SoftLabels'"):
        knowledge_of(RecordDict({HEADER: ConfigRecord({"kind": "SoftLabels"}), EXTRA: to_arrays({})}))


def test_a_message_of_an_unknown_kind() -> None:
    records = RecordDict({HEADER: ConfigRecord({"kind": "os.system"}), PAYLOAD: to_arrays({})})

    with pytest.raises(KnowledgeError, match=r"kind: expected one of .*SoftLabels, .* found 'os.system'"):
        knowledge_of(records)


@pytest.mark.parametrize("value", ["1", 1.5, None, [1]])
def test_a_number_that_is_none(value: object) -> None:
    with pytest.raises(KnowledgeError, match="version: expected a whole number, found"):
        number({} if value is None else {"version": value}, "version")  # type: ignore[dict-item]


def test_what_many_receive_is_packed_once() -> None:
    tensors, packed = {"w": torch.ones(3)}, {}

    first, second = (pack({"client": key}, Weights(dict(tensors)), packed) for key in ("a", "b"))
    other = pack({"client": "c"}, Weights({"w": torch.ones(3)}), packed)

    assert first[PAYLOAD] is second[PAYLOAD]
    assert other[PAYLOAD] is not first[PAYLOAD]
    assert (header_of(first)["client"], header_of(second)["client"]) == ("a", "b")


# --- payloads that lie

GOOD = to_arrays({"x": torch.ones(100)})["tensors"].data[:-32]
CHECKSUM = to_arrays({"x": torch.ones(100)})["tensors"].data[-32:]


@pytest.mark.parametrize("cut", [0, 1, 6, 8, 10, 40, 127, 128, 129, 400, len(GOOD) - 1])
def test_a_payload_that_was_cut(cut: int) -> None:
    with pytest.raises(KnowledgeError, match="expected tensors as safetensors"):
        to_tensors(raw(GOOD[:cut]))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(GOOD + b"x", id="something behind it"),
        pytest.param(b"PK\x03\x04 no archive", id="archive"),
        pytest.param(b"\x80\x04K\x01.", id="pickle"),
        pytest.param(by_hand(b"{" * 300, b""), id="brackets"),
        pytest.param(by_hand(b"[" * 100_000, b""), id="deep nesting"),
        pytest.param(by_hand([1, 2], b""), id="a list"),
        pytest.param(by_hand(entry("O", [1], 0, 8), bytes(8)), id="objects"),
        pytest.param(by_hand(entry("F32", [-2, -2], 0, 16), bytes(16)), id="negative shape"),
        pytest.param(by_hand(entry("F32", [2.5], 0, 10), bytes(10)), id="fractional shape"),
        pytest.param(by_hand(entry("F32", [3], 0, 8), bytes(8)), id="more than there is"),
        pytest.param(by_hand(entry("F32", [1], 0, 8), bytes(8)), id="less than there is"),
        pytest.param(by_hand(entry("F32", [2], 8, 0), bytes(8)), id="backwards"),
        pytest.param(by_hand(entry("F32", [2], 4, 12), bytes(12)), id="a gap before it"),
        pytest.param(by_hand(entry("F32", [2**31], 0, 8), bytes(8)), id="eight gigabytes"),
        pytest.param(by_hand(entry("F32", [2**40], 0, 2**42), bytes(8)), id="four terabytes"),
        pytest.param(by_hand(entry("F64", [2**32, 2**32, 2], 0, 8), bytes(8)), id="an overflow"),
        pytest.param(struct.pack("<Q", 2**62) + bytes(8), id="a huge header"),
    ],
)
def test_a_payload_that_is_not_what_it_claims(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(KnowledgeError, match="expected tensors as safetensors, found something else: "):
        to_tensors(raw(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize(
    "record",
    [
        ArrayRecord(),
        raw(GOOD, name="logits"),
        raw(GOOD, stype="pickle"),
        raw(GOOD, stype="numpy.ndarray"),
        ArrayRecord({"a": Array(np.ones(2)), "tensors": Array(np.ones(2))}),
    ],
    ids=["nothing", "another name", "pickle", "numpy", "two"],
)
def test_another_serialisation_is_refused(record: ArrayRecord) -> None:
    with pytest.raises(KnowledgeError, match=r"expected one array 'tensors' .safetensors\+sha256., found"):
        to_tensors(record)


class _Canary:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    archive = io.BytesIO()
    np.savez(archive, x=np.array([_Canary(canary)], dtype=object))
    payloads = {"pickle": pickle.dumps(_Canary(canary)), "archive": archive.getvalue()}

    for name, data in payloads.items():
        for stype in (FORMAT, "pickle", "numpy.ndarray"):
            with pytest.raises(KnowledgeError, match="payload: expected"):
                to_tensors(raw(data, stype))
        assert not canary.exists(), name

    pickle.loads(payloads["pickle"])  # noqa: S301 - the canary would have been seen
    assert canary.exists()


def test_the_bytes_of_a_payload_end_with_their_sha_256() -> None:
    assert hashlib.sha256(GOOD).digest() == CHECKSUM
    assert torch.equal(to_tensors(raw(GOOD, checksum=CHECKSUM))["x"], torch.ones(100))


def test_a_payload_that_was_damaged_on_the_way_is_refused() -> None:
    source = np.random.default_rng(1)
    for _ in range(300):
        data = bytearray(GOOD + CHECKSUM)
        data[source.integers(0, len(data))] ^= 1 << source.integers(0, 8)
        with pytest.raises(KnowledgeError, match="its SHA-256 is another one"):
            to_tensors(raw(bytes(data), checksum=b""))


@pytest.mark.parametrize(
    "change",
    [
        {"round": 4},
        {"client": "b"},
        {"round": "3"},
        {"more": 1},
        {"seal": "0" * 64},
        {"seal": 1},
        {"label-counts": [2, 1]},
    ],
    ids=str,
)
def test_a_header_that_was_changed_on_the_way_is_refused(change: dict[str, object]) -> None:
    header = header_of(over_the_wire(pack({"round": 3, "client": "a", "label-counts": [1, 2], "share": 0.1})))
    expect_sealed(header)

    with pytest.raises(KnowledgeError, match="expected a header that is as it was sent"):
        expect_sealed({**header, **change})  # type: ignore[dict-item]


def test_a_message_with_other_records_is_refused() -> None:
    records = pack({"round": 3})
    expect_records(records, HEADER)

    with pytest.raises(KnowledgeError, match=r"expected the records \['header', 'payload'\], found \['header'\]"):
        expect_records(records, HEADER, PAYLOAD)
    with pytest.raises(KnowledgeError, match=r"expected the records \[\], found \['header'\]"):
        expect_records(records)


def test_mutated_payloads_are_refused_or_are_numbers_of_the_same_size() -> None:
    source = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(GOOD)
        data[source.integers(0, 80)] ^= 1 << source.integers(0, 8)
        try:
            found = to_tensors(raw(bytes(data)))
        except KnowledgeError:
            refused += 1
        else:
            assert sum(tensor.nbytes for tensor in found.values()) == 400
    assert 100 < refused < 300
