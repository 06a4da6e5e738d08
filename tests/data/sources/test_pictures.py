"""Small photographs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd.data.sources import load
from fedkd.data.sources.pictures import read_caltech10, read_sign_digits
from fedkd.errors import UserError
from tests.data.sources.conftest import save

# The data's own README: pictures per class.
SIGNS = [205, 206, 206, 206, 207, 207, 207, 203, 208, 204]
THINGS = {
    "airplanes": 240, "motorbikes": 240, "watch": 239, "leopards": 200, "bonsai": 128,
    "ketch": 114, "chandelier": 107, "hawksbill": 100, "grand_piano": 99, "brain": 98,
}  # fmt: skip


def share_of_tests(official_test: Tensor | None, labels: Tensor) -> list[int]:
    assert official_test is not None
    return labels[official_test].bincount().tolist()


def test_tiny_files(tmp_path: Path) -> None:
    columns = {"labels": np.array([3, 9]), "is_test": np.array([False, True])}
    grey = np.zeros((2, 64, 64), np.uint8)
    grey[1, 2, 5] = 51
    save(tmp_path / "sign_digits_64.npz", images=grey, **columns)
    signs = read_sign_digits(tmp_path)
    assert signs.views["image"].shape == (2, 1, 64, 64)
    assert float(signs.views["image"][1, 0, 2, 5]) == pytest.approx(0.2)
    assert signs.labels.tolist() == [3, 9]

    colour = np.zeros((2, 64, 64, 3), np.uint8)
    colour[1, 2, 5, 1] = 255
    save(tmp_path / "caltech10_64.npz", images=colour, classes=np.array(list("abcdefghij")), **columns)
    things = read_caltech10(tmp_path)
    assert things.views["image"].shape == (2, 3, 64, 64)
    assert things.views["image"].nonzero().tolist() == [[1, 1, 2, 5]]
    assert things.classes[9] == "j"


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "sign_digits_64.npz", images=np.zeros((2, 32, 32)), labels=np.zeros(2), is_test=np.zeros(2))
    with pytest.raises(UserError, match=r"'images': expected shape \(N, 64, 64\), found \(2, 32, 32\)") as caught:
        read_sign_digits(tmp_path)
    assert path in str(caught.value)


def test_the_real_signs(shared_data: Path) -> None:
    data = load("sign-digits", root=str(shared_data / "sign-digits"))
    assert data.labels.bincount().tolist() == SIGNS
    assert share_of_tests(data.official_test, data.labels) == [round(0.2 * count) for count in SIGNS]
    with np.load(shared_data / "sign-digits" / "sign_digits_64.npz") as arrays:
        np.testing.assert_allclose(data.views["image"][:, 0], arrays["images"] / 255, rtol=1e-6)


def test_the_real_things(shared_data: Path) -> None:
    data = load("caltech10", root=str(shared_data / "caltech10"))
    assert data.classes == tuple(THINGS)
    assert data.labels.bincount().tolist() == list(THINGS.values())
    assert share_of_tests(data.official_test, data.labels) == [round(0.2 * count) for count in THINGS.values()]
    with np.load(shared_data / "caltech10" / "caltech10_64.npz") as arrays:
        assert torch.equal(
            (data.views["image"] * 255).round().byte().permute(0, 2, 3, 1), torch.tensor(arrays["images"])
        )
