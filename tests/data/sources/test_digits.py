"""Small sets of handwritten digits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedkd.data.sources import DataSet, load
from fedkd.data.sources.digits import read_mfeat, read_optdigits, read_pendigits, read_semeion
from fedkd.errors import UserError
from tests.data.sources.conftest import save


def test_digits_are_bundled() -> None:
    digits = load("digits")
    images = digits.views["image"]
    assert images.shape == (1797, 1, 8, 8)
    assert (float(images.min()), float(images.max())) == (0, 1)
    # The first digit of the data set is a zero, whose first row has grey levels 0 0 5 13 9 1 0 0 of 16.
    assert (images[0, 0, 0] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert digits.labels[:10].tolist() == list(range(10))
    assert digits.classes == tuple("0123456789")
    assert digits.official_test is None


def test_tiny_files(tmp_path: Path) -> None:
    labels = np.array([1, 0])
    strokes = np.zeros((2, 8, 2), np.uint8)
    strokes[1, 7] = (100, 25)  # the last point: far right, a quarter up
    save(tmp_path / "pendigits.npz", strokes=strokes, labels=labels)
    assert read_pendigits(tmp_path).views["stroke"][1, :, 7].tolist() == [1, 0.25]

    vectors = {"factors": 216, "karhunen": 64, "morphological": 6, "zernike": 47}
    columns = {name: np.full((2, width), 1000, np.uint16) for name, width in vectors.items()}
    save(tmp_path / "mfeat.npz", pixel=np.full((2, 16, 15), 3, np.uint8), labels=labels, **columns)
    views = read_mfeat(tmp_path).views
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        "pixel": (2, 1, 16, 15),
        **{name: (2, width) for name, width in vectors.items()},
    }
    assert float(views["pixel"].mean()) == 0.5
    assert float(views["factors"].mean()) == 1000

    save(tmp_path / "semeion.npz", images=np.ones((2, 16, 16), np.uint8), labels=labels)
    assert read_semeion(tmp_path).views["image"].tolist() == np.ones((2, 1, 16, 16)).tolist()


def test_digits_without_a_bitmap_are_left_out(tmp_path: Path) -> None:
    bitmaps = np.zeros((2, 32, 32), np.uint8)
    save(tmp_path / "optdigits.npz", images8=np.full((3, 8, 8), 4), images32=bitmaps, labels=np.array([5, 6, 7]))
    data = read_optdigits(tmp_path)
    assert data.labels.tolist() == [5, 6]
    assert data.views["image8"].unique().tolist() == [0.25]


@pytest.mark.parametrize("read", [read_optdigits, read_pendigits, read_mfeat, read_semeion])
def test_a_damaged_file_is_named(tmp_path: Path, read: Callable[[Path], DataSet]) -> None:
    file = tmp_path / f"{read.__name__.removeprefix('read_')}.npz"
    file.write_bytes(b"PK damaged")
    with pytest.raises(UserError, match=f"{file.name}: expected an .npz file of plain arrays"):
        read(tmp_path)
    save(file, labels=np.zeros(2))
    with pytest.raises(UserError, match=rf"{file.name}: '\w+': expected shape .* found none"):
        read(tmp_path)


def real(shared_data: Path, name: str) -> DataSet:
    return load(name, root=str(shared_data / "digits-multi"))


def rows_to_test_on(data: DataSet) -> list[int]:
    assert data.official_test is not None
    return torch.nonzero(data.official_test).flatten().tolist()


def test_each_real_grey_digit_is_its_bitmap_summed_in_blocks(shared_data: Path) -> None:
    data = real(shared_data, "optdigits")
    assert len(data) == 2880
    assert data.views["image32"].unique().tolist() == [0, 1]
    blocks = data.views["image32"].numpy().reshape(2880, 8, 4, 8, 4).sum(axis=(2, 4))
    np.testing.assert_array_equal(data.views["image8"][:, 0] * 16, blocks)
    assert rows_to_test_on(data) == list(range(1934, 2880))


def test_the_real_strokes(shared_data: Path) -> None:
    data = real(shared_data, "pendigits")
    strokes = data.views["stroke"]
    assert strokes.shape == (10_992, 2, 8)
    # Each drawing was scaled so that the pen's larger range, up and down or left and right, is all of 0 to 100.
    assert strokes.amin(dim=2).amax() < 1
    assert (strokes.amax(dim=2) == 1).any(dim=1).float().mean() > 0.99
    assert rows_to_test_on(data) == list(range(7494, 10_992))


def test_the_real_views_of_mfeat(shared_data: Path) -> None:
    data = real(shared_data, "mfeat")
    assert data.labels.bincount().tolist() == [200] * 10
    assert data.official_test is None
    assert data.views["pixel"].shape == (2000, 1, 16, 15)
    assert (data.views["pixel"] * 6).unique().tolist() == pytest.approx(range(7))
    widths = {"factors": 216, "karhunen": 64, "morphological": 6, "zernike": 47}
    assert {name: data.views[name].shape[1] for name in widths} == widths


def test_the_real_semeion(shared_data: Path) -> None:
    data = real(shared_data, "semeion")
    assert data.labels.bincount().tolist() == [161, 162, 159, 159, 161, 159, 161, 158, 155, 158]
    assert data.views["image"].shape == (1593, 1, 16, 16)
    assert data.views["image"].unique().tolist() == [0, 1]
