"""Matrices as products: NumPy's decomposition, the energy kept, and never more bytes than before."""

import numpy as np
import pytest
import torch

from fedkd.knowledge import KnowledgeError
from fedkd.knowledge.codecs import LowRank, decode, encode, num_bytes

SOURCE = np.random.default_rng(0)
SPECTRUM = SOURCE.normal(size=(60, 60)) @ np.diag(0.7 ** np.arange(60)) @ SOURCE.normal(size=(60, 80))


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.95, 0.98, 0.999])
def test_the_error_is_what_numpys_decomposition_leaves(energy: float) -> None:
    coded = encode([LowRank(energy)], {"w": torch.from_numpy(SPECTRUM)}, {})
    u, s, v = np.linalg.svd(SPECTRUM, full_matrices=False)
    shares = np.cumsum(s**2) / np.sum(s**2)
    rank = int(np.argmax(shares >= energy)) + 1
    found = decode([LowRank(energy)], coded, {})["w"].numpy()
    np.testing.assert_allclose(found, u[:, :rank] @ np.diag(s[:rank]) @ v[:rank], atol=1e-10)
    assert np.sum((found - SPECTRUM) ** 2) <= (1 - energy) * np.sum(SPECTRUM**2) * (1 + 1e-9)
    assert num_bytes(coded) == rank * (60 + 80) * 8 + 12


def test_one_singular_value_fewer_would_not_do() -> None:
    matrix = torch.zeros(40, 40, dtype=torch.float64)
    matrix[0, 0], matrix[1, 1], matrix[2, 2] = 3.0, 2.0, 1.0  # energies 9, 4 and 1 of 14
    for energy, rank in ((9 / 14, 1), (9 / 14 + 1e-9, 2), (13 / 14, 2), (13 / 14 + 1e-9, 3), (1.0, 3)):
        assert encode([LowRank(energy)], {"w": matrix}, {})["w#low-rank.left"].shape == (40, rank)


@pytest.mark.parametrize("shape", [(10, 512), (512, 1024), (64, 32, 5, 5), (2, 2), (1, 9), (9,), (), (3, 1, 1)])
def test_it_is_never_larger_and_never_empty(shape: tuple[int, ...]) -> None:
    values = {"w": torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    for energy in (0.1, 0.5, 0.95, 1.0):
        coded = encode([LowRank(energy)], values, {})
        assert num_bytes(coded) <= num_bytes(values)
        found = decode([LowRank(energy)], coded, {})["w"]
        error = (found.double() - values["w"].double()).square().sum() / values["w"].double().square().sum()
        assert error <= (1 - energy) + 1e-6


def test_a_kernel_is_the_matrix_of_its_output_channels() -> None:
    matrix = np.outer(np.arange(1.0, 9), np.arange(36.0))
    coded = encode([LowRank(0.99)], {"w": torch.from_numpy(matrix.reshape(8, 4, 3, 3))}, {})
    assert coded["w#low-rank.left"].shape == (8, 1)
    assert coded["w#low-rank.right"].shape == (1, 36)
    np.testing.assert_allclose(decode([LowRank(0.99)], coded, {})["w"], matrix.reshape(8, 4, 3, 3), atol=1e-9)


def test_a_matrix_of_zeros_stays_one() -> None:
    zeros = {"w": torch.zeros(30, 30)}
    coded = encode([LowRank(0.9)], zeros, {})
    assert torch.equal(decode([LowRank(0.9)], coded, {})["w"], zeros["w"])


@pytest.mark.parametrize(
    ("piece", "value", "reason"),
    [
        ("left", torch.empty(6, 0), "left: expected a rank of 1 to 6, found 0"),
        ("left", torch.ones(6, 7), "left: expected a rank of 1 to 6, found 7"),
        ("left", torch.ones(5, 1), r"left: .*\(6, 1\), found .*\(5, 1\)"),
        ("left", torch.tensor(1.0), "left: expected a rank"),
        ("right", torch.full((1, 7), torch.inf), "right: expected finite"),
        ("right", torch.ones(1, 7).double(), "right: expected torch.float32"),
        ("left", torch.full((6, 1), 3e38), "expected a product that torch.float32 can hold"),
    ],
)
def test_damage_is_refused(piece: str, value: torch.Tensor, reason: str) -> None:
    coded = {
        "w#low-rank.left": torch.ones(6, 1),
        "w#low-rank.right": torch.full((1, 7), 2.0),
        "w#low-rank.form": torch.tensor([1, 6, 7], dtype=torch.int32),
    }
    assert torch.equal(decode([LowRank(0.9)], coded, {})["w"], torch.full((6, 7), 2.0))
    with pytest.raises(KnowledgeError, match=reason):
        decode([LowRank(0.9)], {**coded, f"w#low-rank.{piece}": value}, {})


@pytest.mark.parametrize("energy", [0.0, -0.5, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(energy: float) -> None:
    with pytest.raises(ValueError, match="energy: expected a share above 0, at most 1"):
        LowRank(energy)
