"""Arrays as they come out of files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedkd.data.sources import load
from fedkd.data.sources.arrays import as_images, as_labels, read_columns
from fedkd.errors import UserError
from tests.data.sources.conftest import save


def test_what_is_no_npz_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.npz: expected an .npz file"):
        load(str(tmp_path / "absent.npz"))
    (tmp_path / "text.npz").write_text("labels")
    with pytest.raises(UserError, match=r"text\.npz: expected an .npz file"):
        load(str(tmp_path / "text.npz"))
    with (tmp_path / "lone.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r"lone\.npz: expected an .npz file"):
        load(str(tmp_path / "lone.npz"))
    whole = Path(save(tmp_path / "half.npz", labels=np.zeros(3000, np.int64))).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.npz: expected an .npz file"):
        load(str(tmp_path / "half.npz"))


SHAPES = {"images": (None, 2, 3), "labels": (None,), "scale": ()}


def test_columns_are_read_whatever_their_number_of_rows(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", images=np.zeros((5, 2, 3)), labels=np.zeros(5), scale=np.float64(0.5), note="x")
    assert read_columns(Path(path), SHAPES)["scale"] == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((5, 3, 2))}, r"'images': expected shape \(N, 2, 3\), found \(5, 3, 2\); replace"),
        ({"images": np.zeros((5, 2))}, r"'images': expected shape \(N, 2, 3\), found \(5, 2\)"),
        ({"scale": np.zeros(1)}, r"'scale': expected shape \(\), found \(1,\)"),
        ({"labels": np.float64(1)}, r"'labels': expected shape \(N,\), found \(\)"),
        ({"labels": None}, r"'labels': expected shape \(N,\), found none"),
    ],
)
def test_a_column_of_another_shape_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {"images": np.zeros((5, 2, 3)), "labels": np.zeros(5), "scale": np.float64(1), **change}
    path = save(tmp_path / "b.npz", **{key: array for key, array in arrays.items() if array is not None})
    with pytest.raises(UserError, match=f"b.npz: {message}"):
        read_columns(Path(path), SHAPES)


def test_bytes_become_images_channels_first() -> None:
    grey, colour = np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.arange(18, dtype=np.uint8).reshape(1, 2, 3, 3)
    np.testing.assert_allclose(as_images(grey), grey[:, None] / 255, rtol=1e-6)
    np.testing.assert_allclose(as_images(colour)[0, 2], np.array([[2, 5, 8], [11, 14, 17]]) / 255, rtol=1e-6)


def test_labels_become_int64() -> None:
    labels = as_labels(np.array([255, 0], np.uint8))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [255, 0]
