"""Changed rows only: nothing lost, also where codes are compared, and the bytes by hand."""

import math

import numpy as np
import pytest
import torch

from fedkd.knowledge import KnowledgeError
from fedkd.knowledge.codecs import (
    ClassIndex,
    Codec,
    Delta,
    Distributions,
    Float16,
    QuantizeRows,
    TopK,
    decode,
    encode,
    num_bytes,
    settled,
)

LOGITS = {"x": "logits"}
OLD = torch.from_numpy(np.random.default_rng(0).normal(size=(100, 10)).astype(np.float32))


def changed(rows: list[int]) -> torch.Tensor:
    new = OLD.clone()
    new[rows] += torch.from_numpy(np.random.default_rng(1).normal(scale=3, size=(len(rows), 10)).astype(np.float32))
    return new


def test_only_changed_rows_and_a_mask_travel() -> None:
    new, codec = changed([3, 50, 99]), Delta({"x": OLD})
    coded = encode([codec], {"x": new}, LOGITS)  # type: ignore[arg-type]
    assert num_bytes(coded) == 3 * 10 * 4 + math.ceil(100 / 8)
    assert torch.equal(decode([codec], coded, LOGITS)["x"], new)  # type: ignore[arg-type]


def test_a_row_whose_bits_differ_has_changed() -> None:
    old, new = torch.zeros(40, 4), torch.zeros(40, 4)
    new[7, 2] = -0.0
    codec = Delta({"x": old})
    found = decode([codec], encode([codec], {"x": new}, {}), {})["x"]
    assert torch.signbit(found).nonzero().tolist() == [[7, 2]]


@pytest.mark.parametrize(
    "codec",
    [ClassIndex(), Distributions(1), Distributions(4), Distributions(8), QuantizeRows(3), TopK(2), Float16()],
    ids=str,
)
def test_codes_that_have_not_changed_do_not_travel(codec: Codec) -> None:
    """CFD: over ten rounds of changes, what both sides hold is what the codes alone would have given."""
    source = np.random.default_rng(2)
    logits, held = OLD.clone(), {"server": {}, "client": {}}
    for round_ in range(10):
        logits[source.integers(0, 100, 5)] += torch.from_numpy(source.normal(scale=2, size=(5, 10)).astype(np.float32))
        new = settled((codec,), {"x": logits}, LOGITS)  # type: ignore[arg-type]
        coded = encode((Delta(held["client"]), codec), new, LOGITS)  # type: ignore[arg-type]
        held["client"] = new
        held["server"] = decode((Delta(held["server"]), codec), coded, LOGITS)  # type: ignore[arg-type]
        assert torch.equal(held["server"]["x"], new["x"])
        if round_:
            assert num_bytes(coded) < num_bytes(encode((codec,), {"x": logits}, LOGITS)) / 2  # type: ignore[arg-type]


def test_cfds_bytes_by_hand() -> None:
    codecs, old, new = (ClassIndex(),), OLD, OLD.clone()
    for row in (1, 2, 3, 4, 60, 61, 62, 63):
        new[row] = -OLD[row]  # another class is largest
    reference = settled(codecs, {"x": old}, LOGITS)  # type: ignore[arg-type]
    coded = encode((Delta(reference), *codecs), settled(codecs, {"x": new}, LOGITS), LOGITS)  # type: ignore[arg-type]
    assert num_bytes(coded) == math.ceil(100 / 8) + 8 * 4 / 8 + 12


def test_without_a_reference_everything_travels() -> None:
    for reference in ({}, {"x": OLD[:50]}, {"x": OLD.double()}, {"x": torch.tensor(1.0)}):
        coded = encode([Delta(reference)], {"x": OLD}, {})
        assert torch.equal(decode([Delta(reference)], coded, {})["x"], OLD)
        assert num_bytes(coded) == 4000


@pytest.mark.parametrize(
    ("piece", "value", "reason"),
    [
        ("rows", torch.ones(2, 10), r"rows: .*\(1, 10\), found .*\(2, 10\)"),
        ("rows", torch.ones(1, 9), r"rows: .*\(1, 10\), found .*\(1, 9\)"),
        ("rows", torch.full((1, 10), torch.nan), "rows: expected finite"),
        ("changed", torch.zeros(12, dtype=torch.uint8), r"changed: expected uint8 of shape \(13,\)"),
        ("changed", torch.tensor([0] * 12 + [16], dtype=torch.uint8), "changed: expected zeros behind"),
    ],
)
def test_damage_is_refused(piece: str, value: torch.Tensor, reason: str) -> None:
    codec = Delta({"x": OLD})
    coded = encode([codec], {"x": changed([3])}, {})
    with pytest.raises(KnowledgeError, match=reason):
        decode([codec], {**coded, f"x#delta.{piece}": value}, {})


def test_changes_of_something_unknown_are_refused() -> None:
    coded = encode([Delta({"x": OLD})], {"x": changed([3])}, {})
    with pytest.raises(KnowledgeError, match="there is none to compare with, found changes"):
        decode([Delta({})], coded, {})
