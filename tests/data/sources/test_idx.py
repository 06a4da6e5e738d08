"""The format of MNIST."""

from pathlib import Path

import numpy as np
import pytest

from fedkd.data.sources import load
from fedkd.errors import UserError


def test_idx_files_are_read_packed_or_not(small_mnist: Path) -> None:
    data = load("mnist", root=str(small_mnist))
    expected = np.arange(36).reshape(6, 1, 2, 3) * 7 / 255
    np.testing.assert_allclose(data.views["image"], expected, rtol=1e-6)
    assert data.labels.tolist() == [5, 0, 4, 1, 9, 2]
    assert data.official_test is not None
    assert data.official_test.tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize("damage", [b"", b"\x00\x00\x08\x01\x00\x00\x00\x05ab", b"\x00\x00\x0d\x01\x00\x00\x00\x00"])
def test_damaged_idx_files_are_named(small_mnist: Path, damage: bytes) -> None:
    (small_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(damage)
    with pytest.raises(UserError, match="train-labels-idx1-ubyte: expected an idx file"):
        load("mnist", root=str(small_mnist))


@pytest.mark.parametrize(
    ("name", "mean", "spread", "trousers"), [("mnist", 0.1307, 0.3081, 6742), ("fashion-mnist", 0.2860, 0.3530, 6000)]
)
def test_the_real_files(shared_data: Path, name: str, mean: float, spread: float, trousers: int) -> None:
    data = load(name, root=str(shared_data / name))
    assert data.views["image"].shape == (70_000, 1, 28, 28)
    assert data.official_test is not None
    assert int(data.official_test.sum()) == 10_000
    training = data.views["image"][~data.official_test]
    assert float(training.mean()) == pytest.approx(mean, abs=5e-5)
    assert float(training.std()) == pytest.approx(spread, abs=5e-5)
    assert int((data.labels[:60_000] == 1).sum()) == trousers
