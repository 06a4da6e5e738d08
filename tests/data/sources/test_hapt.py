"""Windows of an accelerometer and a gyroscope."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedkd.data.sources import load
from fedkd.data.sources.hapt import read_hapt
from fedkd.errors import UserError
from tests.data.sources.conftest import save

# The data's own README: windows per class, and the people who are the official test set.
COUNTS = [1722, 1544, 1407, 1801, 1979, 1958, 70, 33, 107, 85, 139, 84]
TESTED = {2, 4, 9, 10, 12, 13, 18, 20, 24}


def tiny(**changes: Any) -> dict[str, Any]:
    """Three windows of the classes 0, 7 and 5, but for the changes."""
    acc = np.zeros((3, 128, 3), np.int16)
    acc[2, 4, 1] = 30
    return {
        "acc": acc,
        "gyro": -acc,
        "acc_scale": np.float64(0.5),
        "gyro_scale": np.float64(0.1),
        "label": np.array([0, 7, 5], np.uint8),
        "subject": np.array([4, 4, 9], np.uint8),
        "is_test": np.array([False, False, True]),
        "classes": np.array([f"c{number}" for number in range(12)]),
        "rate_hz": np.int32(50),
        **changes,
    }


def test_values_get_their_units_and_channels_come_first(tmp_path: Path) -> None:
    save(tmp_path / "hapt_windows.npz", **tiny())
    data = read_hapt(tmp_path)
    assert data.views["acc"].shape == (2, 3, 128)
    assert data.views["acc"][1, 1, 4] == 15
    assert float(data.views["gyro"][1, 1, 4]) == pytest.approx(-3)
    assert data.views["acc"].count_nonzero() == 1
    assert data.labels.tolist() == [0, 5]
    assert data.classes == ("c0", "c1", "c2", "c3", "c4", "c5")
    assert data.groups is not None
    assert data.groups.tolist() == [4, 9]
    assert data.rates == {"acc": 50, "gyro": 50}


def test_transitions_are_classes_if_asked(tmp_path: Path) -> None:
    save(tmp_path / "hapt_windows.npz", **tiny())
    data = read_hapt(tmp_path, transitions=True)
    assert (data.name, data.labels.tolist(), len(data.classes)) == ("hapt-12", [0, 7, 5], 12)


def test_windows_of_another_length_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "hapt_windows.npz", **tiny(gyro=np.zeros((3, 100, 3), np.int16)))
    with pytest.raises(UserError, match=r"'gyro': expected shape \(N, 128, 3\), found \(3, 100, 3\)"):
        read_hapt(tmp_path)


@pytest.mark.parametrize(("name", "classes", "test"), [("hapt", 6, None), ("hapt-12", 12, 3162)])
def test_the_real_windows(shared_data: Path, name: str, classes: int, test: int | None) -> None:
    data = load(name, root=str(shared_data / "hapt"))
    assert data.labels.bincount().tolist() == COUNTS[:classes]
    assert data.classes[0] == "walking"
    assert data.groups is not None
    assert data.official_test is not None
    assert set(data.groups[data.official_test].tolist()) == TESTED
    assert set(data.groups[~data.official_test].tolist()) == set(range(1, 31)) - TESTED
    assert test is None or int(data.official_test.sum()) == test
    # Acceleration includes gravity: a person who lies still feels 1 g.
    lying = data.views["acc"][data.labels == 5].double().mean(dim=2)
    assert float(torch.linalg.vector_norm(lying, dim=1).median()) == pytest.approx(1, abs=0.05)


def test_the_real_values_are_on_the_sensors_grid(shared_data: Path) -> None:
    data = load("hapt-12", root=str(shared_data / "hapt"))
    with np.load(shared_data / "hapt" / "hapt_windows.npz") as arrays:
        np.testing.assert_allclose(data.views["acc"], arrays["acc"].transpose(0, 2, 1) / 720, rtol=1e-6)
        np.testing.assert_allclose(
            data.views["gyro"], np.deg2rad(arrays["gyro"] * 0.0175).transpose(0, 2, 1), rtol=1e-6
        )
