"""Uniform quantisation: the levels by hand, the bound, and the bytes."""

import math

import numpy as np
import pytest
import torch

from fedkd.knowledge import KnowledgeError
from fedkd.knowledge.codecs import Quantize, QuantizeRows, decode, encode, num_bytes


def through(codec: Quantize, values: torch.Tensor, meaning: str = "weights") -> torch.Tensor:
    meanings = {"x": meaning}
    return decode([codec], encode([codec], {"x": values}, meanings), meanings)["x"]  # type: ignore[arg-type]


def test_levels_and_ties_by_hand() -> None:
    # Two bits on 0..3: levels 0, 1, 2, 3; a tie goes to the even level.
    values = torch.tensor([0.0, 0.4, 0.5, 0.6, 1.5, 2.5, 2.6, 3.0] * 4)
    assert through(Quantize(2), values).tolist() == [0, 0, 0, 1, 2, 2, 3, 3] * 4


def test_one_bit_leaves_the_ends() -> None:
    values = torch.tensor([-1.0, 0.9, 1.1, 3.0] * 10)
    assert through(Quantize(1), values).tolist() == [-1, -1, 3, 3] * 10


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_error_is_within_half_a_step(bits: int, rows: bool, dtype: torch.dtype) -> None:
    source = np.random.default_rng(bits)
    values = torch.from_numpy(source.normal(size=(6, 5, 8)) * np.array([1, 10, 100, 0.1, 1, 0])[:, None, None]).to(
        dtype
    )
    codec = QuantizeRows(bits) if rows else Quantize(bits)
    x, found = values.double().numpy(), through(codec, values)
    axes = (1, 2) if rows else (0, 1, 2)
    width = x.max(axes, keepdims=True) - x.min(axes, keepdims=True)
    error = np.abs(found.double().numpy() - x)
    assert found.dtype == dtype
    assert (error <= width / 2 / (2**bits - 1) + torch.finfo(dtype).eps * np.abs(x).max(axes, keepdims=True)).all()
    np.testing.assert_array_equal(found.double().numpy().max(axes), x.max(axes))
    np.testing.assert_array_equal(found.double().numpy().min(axes), x.min(axes))


@pytest.mark.parametrize("bits", range(1, 9))
def test_bytes_by_hand(bits: int) -> None:
    values = torch.randn(33, 7, generator=torch.Generator().manual_seed(0))
    coded = encode([Quantize(bits)], {"x": values}, {})
    assert coded["x#quantize.codes"].shape == (math.ceil(33 * 7 * bits / 8),)
    assert num_bytes(coded) == math.ceil(231 * bits / 8) + 2 * 4 + 3 * 4
    coded = encode([QuantizeRows(bits)], {"x": values}, {})
    assert num_bytes(coded) == math.ceil(231 * bits / 8) + 33 * 2 * 4 + 3 * 4


def test_codes_are_packed_lowest_bit_first() -> None:
    # 0..7 in three bits on eight levels: 000 001 ... 111, lowest bits first, are the bytes 136, 198 and 250.
    coded = encode([Quantize(3)], {"x": torch.arange(8.0).repeat(4)}, {})
    assert coded["x#quantize.codes"].tolist() == [136, 198, 250] * 4


def test_equal_numbers_stay_exact() -> None:
    assert torch.equal(through(Quantize(1), torch.full((5, 5), -0.1)), torch.full((5, 5), -0.1))


def test_numbers_of_one_sign_keep_it() -> None:
    variances = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 1e-6
    assert (through(Quantize(2), variances) >= 0).all()


def test_distributions_are_distributions_again() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(10), size=20).astype(np.float32))
    np.testing.assert_allclose(through(Quantize(2), rows, "probabilities").double().sum(1), np.ones(20), atol=1e-6)


def test_a_range_beyond_float64_is_refused() -> None:
    with pytest.raises(KnowledgeError, match="x: quantize: expected a range that float64 can hold"):
        through(Quantize(4), torch.tensor([-1.7e308, 1.7e308] * 20, dtype=torch.float64))


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits: expected a whole number from 1 to 8, found {bits}"):
        Quantize(bits)


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        ([float("nan"), 1.0], "ends: expected finite ranges"),
        ([0.0, float("inf")], "ends: expected finite ranges"),
        ([1.0, 0.0], "ends: expected finite ranges, smallest number first"),
    ],
)
def test_damaged_ends_are_refused(ends: list[float], reason: str) -> None:
    coded = encode([Quantize(4)], {"x": torch.randn(50)}, {})
    coded["x#quantize.ends"] = torch.tensor([ends]).view(torch.uint8)
    with pytest.raises(KnowledgeError, match=reason):
        decode([Quantize(4)], coded, {})
