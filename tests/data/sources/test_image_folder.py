"""The user's own folder of images."""

from pathlib import Path

import numpy as np
import pytest

from fedkd.data.sources import load
from fedkd.errors import UserError
from tests.data.sources.conftest import write_image


def test_an_image_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "pets" / "dog" / "a.png", 51)
    write_image(tmp_path / "pets" / "cat" / "b.png", 102)
    write_image(tmp_path / "pets" / "cat" / "a.png", 255)
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("not an image")
    data = load(str(tmp_path / "pets"))
    assert data.name == "pets"
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1]
    assert data.views["image"].shape == (3, 3, 3, 4)  # colour; 4 wide, 3 high
    np.testing.assert_allclose(data.views["image"][:, :, 0, 0], np.array([[1.0], [0.4], [0.2]]).repeat(3, axis=1))
    assert data.official_test is None


def test_an_image_folder_with_train_and_test(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "cat" / "a.png", 0)
    write_image(tmp_path / "train" / "dog" / "a.png", 0)
    write_image(tmp_path / "test" / "cat" / "a.png", 0)
    write_image(tmp_path / "test" / "dog" / "a.png", 0)
    data = load(str(tmp_path))
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert data.official_test is not None
    assert data.official_test.tolist() == [False, False, True, True]


def test_an_image_folder_that_is_not_as_described(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: expected an image folder <class>/<file>"):
        load(str(tmp_path / "empty"))
    write_image(tmp_path / "sizes" / "cat" / "a.png", 0, (4, 3))
    write_image(tmp_path / "sizes" / "cat" / "b.png", 0, (4, 3))
    write_image(tmp_path / "sizes" / "cat" / "c.png", 0, (5, 3))
    with pytest.raises(UserError, match=r"images of one size, found width x height 4x3 \(2 files\), 5x3 \(1 files\)"):
        load(str(tmp_path / "sizes"))
    (tmp_path / "broken" / "cat").mkdir(parents=True)
    (tmp_path / "broken" / "cat" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\.png: expected an image"):
        load(str(tmp_path / "broken"))
    write_image(tmp_path / "halves" / "train" / "cat" / "a.png", 0)
    write_image(tmp_path / "halves" / "test" / "dog" / "a.png", 0)
    with pytest.raises(UserError, match=r"expected the classes of train \(cat\), found dog"):
        load(str(tmp_path / "halves"))
