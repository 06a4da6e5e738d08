"""What holds for every codec: nothing grows, nothing is changed in place, and nothing damaged gets through."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedkd.knowledge import KnowledgeError, Meaning
from fedkd.knowledge.codecs import (
    BFloat16,
    ClassIndex,
    Codec,
    Delta,
    Distributions,
    Float16,
    LowRank,
    Quantize,
    QuantizeRows,
    TopK,
    decode,
    encode,
    num_bytes,
)
from fedkd.knowledge.codecs._bits import bits_for, pack, unpack


def payload(shape: tuple[int, ...] = (40, 12), meaning: Meaning = "logits", seed: int = 0) -> dict[str, Tensor]:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    x = torch.from_numpy(np.asarray(values))
    return {
        "ids": torch.arange(5),
        "x": x.softmax(-1) if meaning == "probabilities" and shape else x,
        "mask": torch.tensor([True]),
    }


OLD = payload()["x"] * (torch.arange(40) % 3 > 0)[:, None]  # every third row has changed since
CODECS: list[Codec] = [
    *(Float16(), BFloat16(), Quantize(1), Quantize(5), Quantize(8), QuantizeRows(3), ClassIndex(), Distributions(1)),
    *(Distributions(6), TopK(1), TopK(4), LowRank(0.9), Delta({"x": OLD})),
]
CHAINS = [*([codec] for codec in CODECS), [TopK(3), Quantize(4)], [LowRank(0.8), Float16()], [Float16(), LowRank(0.9)]]
MEANINGS: list[Meaning] = ["logits", "probabilities", "rows", "weights"]
every_chain = pytest.mark.parametrize("codecs", CHAINS, ids=lambda chain: "+".join(codec.name for codec in chain))


@every_chain
@pytest.mark.parametrize("meaning", MEANINGS)
@pytest.mark.parametrize(
    "shape", [(40, 12), (1, 3), (2, 2), (7,), (), (0, 5), (6, 4, 3, 3), (50, 1), (1, 300)], ids=str
)
def test_layout_and_other_tensors_come_back_and_nothing_grows(
    codecs: list[Codec], meaning: Meaning, shape: tuple[int, ...]
) -> None:
    tensors, meanings = payload(shape, meaning), {"x": meaning}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    coded = encode(codecs, tensors, meanings)
    found = decode(codecs, coded, meanings)
    assert num_bytes(coded) <= num_bytes(tensors)
    assert all(torch.equal(tensors[name], before[name]) for name in before)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()
    }
    assert torch.equal(found["ids"], tensors["ids"])
    assert torch.equal(found["mask"], tensors["mask"])
    assert torch.isfinite(found["x"]).all()
    assert all(torch.equal(tensor, encode(codecs, tensors, meanings)[name]) for name, tensor in coded.items())


@every_chain
def test_what_is_not_finite_is_refused_by_whoever_would_send_it(codecs: list[Codec]) -> None:
    for meaning in codecs[0].suits:
        tensors = payload(meaning=meaning)
        tensors["x"][3, 2] = torch.nan
        with pytest.raises(KnowledgeError, match="x: expected finite values, found 1 that are not"):
            encode(codecs, tensors, {"x": meaning})


@every_chain
def test_a_piece_that_is_lost_renamed_or_twice_there_is_refused(codecs: list[Codec]) -> None:
    meaning = codecs[0].suits[0]
    coded = encode(codecs, payload(meaning=meaning), {"x": meaning})
    pieces = [name for name in coded if "#" in name]
    assert pieces
    for name in pieces:
        without = {other: tensor for other, tensor in coded.items() if other != name}
        for bad in (without, {**without, f"{name}s": coded[name]}, {**coded, "x": torch.zeros(40, 12)}):
            with pytest.raises(KnowledgeError, match="x"):
                decode(codecs, bad, {"x": meaning})
            with pytest.raises(KnowledgeError, match="x"):
                decode(codecs, dict(reversed(bad.items())), {"x": meaning})


@every_chain
def test_damaged_pieces_are_refused_or_give_finite_numbers_of_a_known_shape(codecs: list[Codec]) -> None:
    """Bits flipped anywhere: the only error is the one that costs its sender the round."""
    source = np.random.default_rng(0)
    meaning = codecs[0].suits[0]
    coded = encode(codecs, payload(meaning=meaning), {"x": meaning})
    names = [name for name in coded if "#" in name]
    for _ in range(150):
        name = names[source.integers(len(names))]
        data = coded[name].clone().contiguous()
        flat = data.reshape(-1).view(torch.uint8)
        flat[source.integers(len(flat))] ^= 1 << source.integers(8)
        try:
            found = decode(codecs, {**coded, name: data}, {"x": meaning})["x"]
        except KnowledgeError:
            continue
        assert found.is_floating_point()
        assert found.isfinite().all()
        assert found.numel() <= 2**26


def test_of_two_codecs_the_second_codes_what_the_first_leaves() -> None:
    coded = encode([TopK(2), Float16()], payload(), {"x": "logits"})
    assert [name for name in coded if "#" in name] == [
        "x#top-k.values#float16.half",
        "x#top-k.values#float16.form",
        "x#top-k.places",
        "x#top-k.form",
    ]
    assert num_bytes(coded) == 5 * 8 + 1 + 40 * 3 * 2 + 40 * 2 * 4 / 8 + 12 + 12


def test_without_codecs_nothing_happens() -> None:
    tensors = {"a#b": torch.ones(2)}
    assert encode([], tensors, {}) == decode([], tensors, {}) == tensors


def test_names_that_codecs_use_are_refused() -> None:
    with pytest.raises(KnowledgeError, match="a#b: expected a name without '#'"):
        encode([Float16()], {"a#b": torch.ones(2)}, {})


def test_a_payload_that_is_too_large_for_codecs_is_refused() -> None:
    with pytest.raises(KnowledgeError, match="expected at most 67108864 numbers where codecs are used, found 67108865"):
        encode([Float16()], {"x": torch.zeros(1).expand(2**26 + 1)}, {})


def test_a_few_bytes_cannot_claim_the_memory() -> None:
    form = torch.tensor([1, 2, 2**25], dtype=torch.int32)
    few = {
        f"{n}#class-index.{piece}": tensor
        for n in "ab"
        for piece, tensor in (("form", form), ("index", torch.zeros(7, dtype=torch.uint8)))
    }
    with pytest.raises(
        KnowledgeError, match="expected at most 67108864 numbers where codecs are used, found 134217728"
    ):
        decode([ClassIndex()], few, {"a": "logits", "b": "logits"})


@given(st.integers(0, 31), st.lists(st.integers(0, 2**31 - 1), max_size=40))
@settings(max_examples=200, deadline=None)
def test_packed_numbers_come_back_in_the_fewest_bytes(bits: int, numbers: list[int]) -> None:
    values = torch.tensor([number % 2**bits for number in numbers], dtype=torch.int64)
    packed = pack(values, bits)
    as_one = sum(int(value) << (bits * place) for place, value in enumerate(values.tolist()))
    assert bytes(packed.tolist()) == as_one.to_bytes((bits * len(numbers) + 7) // 8, "little")
    assert torch.equal(unpack("x", packed, len(numbers), bits), values)


@pytest.mark.parametrize("bits", [1, 3, 7, 21])
def test_many_numbers_are_packed_in_little_memory(bits: int) -> None:
    count = 2**20 + 3
    values = torch.from_numpy(np.random.default_rng(bits).integers(0, 2**bits, count))
    tracemalloc.start()
    packed = pack(values, bits)
    found = unpack("x", packed, count, bits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert torch.equal(found, values)
    assert peak < 16 * count  # a byte for each bit of a 32-bit word would be 32 a number
    loose = packed.clone()
    loose[-1] |= 128
    with pytest.raises(KnowledgeError, match="x: expected zeros behind the last number, found others"):
        unpack("x", loose, count, bits)


def test_bits_for_so_many_values() -> None:
    assert [bits_for(n) for n in (0, 1, 2, 3, 4, 5, 8, 9, 10, 1000, 1024, 1025)] == [
        0,
        0,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
        10,
        10,
        11,
    ]
