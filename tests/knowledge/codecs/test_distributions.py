"""Constrained quantisation: rows remain distributions, and none on the grid is nearer."""

import itertools
import math

import numpy as np
import pytest
import torch

from fedkd.knowledge import KnowledgeError
from fedkd.knowledge.codecs import ClassIndex, Codec, Distributions, decode, encode, num_bytes
from fedkd.knowledge.codecs.distributions import largest_remainders

LOGITS = torch.from_numpy(np.random.default_rng(0).normal(scale=3, size=(37, 10)).astype(np.float32))


def through(codec: Codec, values: torch.Tensor, meaning: str = "logits") -> torch.Tensor:
    meanings = {"x": meaning}
    return decode([codec], encode([codec], {"x": values}, meanings), meanings)["x"]  # type: ignore[arg-type]


def test_a_class_takes_ceil_log2_bits() -> None:
    coded = encode([ClassIndex()], {"x": LOGITS}, {"x": "logits"})
    assert coded["x#class-index.index"].shape == (math.ceil(37 * 4 / 8),)
    assert num_bytes(coded) == 19 + 12
    wide = encode([ClassIndex()], {"x": torch.randn(16, 1000)}, {"x": "logits"})
    assert num_bytes(wide) == 16 * 10 / 8 + 12


def test_a_class_is_decoded_to_a_distribution_with_its_mass_there() -> None:
    found = through(ClassIndex(), LOGITS).double().softmax(1).numpy()
    np.testing.assert_allclose(found, np.eye(10)[LOGITS.numpy().argmax(1)], atol=1e-8)


def test_of_equal_classes_the_first_is_taken() -> None:
    rows = torch.tensor([[1.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0]]).repeat(20, 1)
    assert through(ClassIndex(), rows).argmax(1).tolist() == [1, 0] * 20
    assert through(Distributions(1), rows).argmax(1).tolist() == [1, 0] * 20


@pytest.mark.parametrize("whole", [1, 3, 7])
def test_no_distribution_on_the_grid_is_nearer(whole: int) -> None:
    rows = np.random.default_rng(whole).dirichlet(np.full(4, 0.7), size=60)
    grid = np.array([p for p in itertools.product(range(whole + 1), repeat=4) if sum(p) == whole]) / whole
    parts = largest_remainders(torch.from_numpy(rows), whole).numpy()
    assert (parts.sum(1) == whole).all()
    for order in (1, 2, np.inf):
        nearest = np.linalg.norm(grid[None] - rows[:, None], ord=order, axis=2).min(1)
        np.testing.assert_allclose(np.linalg.norm(parts / whole - rows, ord=order, axis=1), nearest, atol=1e-12)


def test_remainders_by_hand() -> None:
    # 3 parts of (0.5, 0.3, 0.2) are (1.5, 0.9, 0.6): down to (1, 0, 0), and two more for the remainders 0.9 and 0.6.
    rows = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    assert largest_remainders(rows, 3).tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 1]]
    assert largest_remainders(rows, 1).tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("bits", range(1, 9))
def test_errors_stay_below_one_part(bits: int) -> None:
    exact = LOGITS.double().numpy()
    exact = np.exp(exact - exact.max(1, keepdims=True))
    exact /= exact.sum(1, keepdims=True)
    found = through(Distributions(bits), LOGITS).double().softmax(1).numpy()
    assert np.abs(found - exact).max() < 1 / (2**bits - 1) + 1e-6
    np.testing.assert_allclose(found * (2**bits - 1), np.rint(found * (2**bits - 1)), atol=1e-4)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bytes_by_hand(bits: int) -> None:
    coded = encode([Distributions(bits)], {"x": LOGITS}, {"x": "logits"})
    assert num_bytes(coded) == math.ceil(370 * bits / 8) + 12


def test_probabilities_stay_probabilities_and_an_absent_class_a_row_of_zeros() -> None:
    rows = torch.eye(10) * 0.7 + 0.03
    rows[4] = 0
    found = through(Distributions(4), rows, "probabilities")
    assert found[4].tolist() == [0.0] * 10
    np.testing.assert_allclose(found.double().sum(1), [float(n != 4) for n in range(10)], atol=1e-6)


def coded_with(name: str, piece: torch.Tensor) -> dict[str, torch.Tensor]:
    codec: Codec = ClassIndex() if name.startswith("class") else Distributions(2)
    return {**encode([codec], {"x": LOGITS}, {"x": "logits"}), f"x#{name}": piece}


@pytest.mark.parametrize(
    ("name", "piece", "reason"),
    [
        ("class-index.index", torch.full((19,), 0xBB, dtype=torch.uint8), "expected zeros behind the last number"),
        ("class-index.index", torch.tensor([0xAA] * 18 + [0x0A], dtype=torch.uint8), "classes below 10, found 10"),
        ("class-index.index", torch.zeros(18, dtype=torch.uint8), r"index: expected uint8 of shape \(19,\).*\(18,\)"),
        ("class-index.index", torch.zeros(19), "index: expected uint8 .*float32"),
        ("class-index.form", torch.tensor([1, 370], dtype=torch.int32), r"form: expected a shape \(N, C\)"),
        ("class-index.form", torch.tensor([9, 37, 10], dtype=torch.int32), "form: expected a floating-point type"),
        ("class-index.form", torch.tensor([1, 2, 2**30], dtype=torch.int32), "form: expected .* numbers, found"),
        ("class-index.form", torch.tensor([1, -37, 10], dtype=torch.int32), "form: expected .* numbers, found"),
        ("class-index.form", torch.tensor([1, 37, 10]), "form: expected int32"),
        ("distributions.parts", torch.zeros(93, dtype=torch.uint8), "parts: expected the sum 3 in every row, found"),
    ],
)
def test_damage_is_refused(name: str, piece: torch.Tensor, reason: str) -> None:
    codec: Codec = ClassIndex() if name.startswith("class") else Distributions(2)
    with pytest.raises(KnowledgeError, match=reason):
        decode([codec], coded_with(name, piece), {"x": "logits"})


def test_bits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="bits: expected a whole number from 1 to 8, found 9"):
        Distributions(9)
