"""The user's own .npz file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd.data.sources import load
from fedkd.errors import UserError
from tests.data.sources.conftest import save


def test_an_npz_file_with_everything(tmp_path: Path) -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    colour = np.arange(72, dtype=np.uint8).reshape(2, 3, 4, 3)
    path = save(
        tmp_path / "mine.npz",
        labels=np.array([1, 0], np.uint8),
        grey=grey,
        colour=colour,
        signal=np.array([[[1, -2, 3]], [[4, 5, 600]]], np.int16),
        vector=np.array([[0.5, 2.5], [1e9, -1]]),
        codes=np.array([[200, 7], [0, 1]], np.uint8),
        classes=np.array(["cat", "dog"]),
        is_test=np.array([0, 1]),
        groups=np.array(["zoe", "ann"]),
        files=np.array(["a.png", "b.png"]),
        number=np.array([17, 18]),
        scale=np.float64(0.1),
    )
    data = load(path)
    assert data.name == "mine"
    assert set(data.views) == {"grey", "colour", "signal", "vector", "codes"}
    np.testing.assert_allclose(data.views["grey"], grey[:, None] / 255, rtol=1e-6)
    np.testing.assert_allclose(data.views["colour"], np.moveaxis(colour, 3, 1) / 255, rtol=1e-6)
    assert data.views["signal"].tolist() == [[[1, -2, 3]], [[4, 5, 600]]]
    assert data.views["vector"].tolist() == [[0.5, 2.5], [1e9, -1]]
    assert data.views["codes"].tolist() == [[200, 7], [0, 1]]
    assert data.labels.tolist() == [1, 0]
    assert data.classes == ("cat", "dog")
    assert data.official_test is not None
    assert data.official_test.tolist() == [False, True]
    assert data.groups is not None
    assert data.groups.tolist() == [1, 0]


def test_an_npz_file_says_which_samples_have_a_view_and_how_fast_signals_are_sampled(tmp_path: Path) -> None:
    path = save(
        tmp_path / "mine.npz",
        labels=np.array([0, 1, 0]),
        picture=np.full((3, 2, 2), 255, np.uint8),
        picture_present=np.array([True, False, True]),
        sound=np.array([[[1.0, 2.0]], [[3.0, 4.0]], [[np.nan, 9.0]]]),
        sound_present=np.array([True, True, False]),
        sound_rate=np.float32(8000),
        heart_rate=np.array([[60.0], [61.0], [62.0]]),  # a view of its own
        frame_rate=np.float64(25),  # a note
    )
    data = load(path)
    assert set(data.views) == {"picture", "sound", "heart_rate"}
    assert data.views["sound"].tolist() == [[[1, 2]], [[3, 4]], [[0, 0]]]
    assert data.views["picture"].sum(dim=(1, 2, 3)).tolist() == [4, 0, 4]
    assert {name: there.tolist() for name, there in data.present.items()} == {
        "picture": [True, False, True],
        "sound": [True, True, False],
    }
    assert data.rates == {"sound": 8000.0}


def test_an_npz_file_with_the_least(tmp_path: Path) -> None:
    data = load(save(tmp_path / "least.npz", labels=np.array([2, 0, 1]), x=np.zeros((3, 1))))
    assert data.classes == ("0", "1", "2")
    assert data.official_test is None
    assert data.groups is None


def test_the_digest_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    one, two = (
        load(save(folder / "mine.npz", labels=np.array([0, 0]), x=np.zeros((2, 1))))
        for folder in (tmp_path, tmp_path / "elsewhere")
    )
    assert one is not two
    assert one.digest == two.digest


def test_an_array_of_another_length_does_not_vanish_silently(shared_data: Path) -> None:
    with pytest.raises(UserError, match=r"optdigits.npz: 'images32': expected 5620 rows, one per label, found 2880"):
        load(str(shared_data / "digits-multi" / "optdigits.npz"))


def test_images_with_the_channels_last_are_not_taken_for_narrow_ones_of_many_channels(tmp_path: Path) -> None:
    for channels in (1, 3):
        path = save(tmp_path / f"{channels}.npz", labels=np.array([0, 1]), x=np.zeros((2, 8, 8, channels)))
        with pytest.raises(UserError, match=rf"'x': expected .* channels first.*found \(2, 8, 8, {channels}\); transp"):
            load(str(path))
    first = load(
        save(tmp_path / "first.npz", labels=np.array([0, 1]), x=np.zeros((2, 3, 8, 8)), y=np.zeros((2, 2, 2, 3)))
    )
    assert first.views["x"].shape == (2, 3, 8, 8)
    assert first.views["y"].shape == (2, 2, 2, 3)


def test_real_colour_images(shared_data: Path) -> None:
    data = load(str(shared_data / "caltech10" / "caltech10_64.npz"))
    assert data.views["images"].shape == (1565, 3, 64, 64)
    assert data.classes[:2] == ("airplanes", "motorbikes")
    assert data.official_test is not None
    assert int(data.official_test.sum()) == 314


TWO = {"labels": np.array([0, 1]), "x": np.zeros((2, 1))}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"label": np.zeros(3)}, r"expected key 'labels' .* found 'label' float64 \(3,\)"),
        ({}, "expected key 'labels' .* found nothing"),
        ({"labels": np.array([0.5, 1])}, "'labels': expected whole numbers .* found float64"),
        ({"labels": np.array([0, 10**12]), "x": np.zeros((2, 1))}, "'labels': .*found 2 different ones up to 10{12}"),
        ({"labels": np.array([0, 1]), "x": np.zeros((3, 1))}, "'x': expected 2 rows, one per label, found 3"),
        ({"labels": np.array([0, 1]), "x": np.array([{}, {}])}, "plain arrays"),
        ({"labels": np.array([0, 1]), "x": np.zeros((2, 3, 8, 8), np.uint8)}, r"'x': expected images .* reorder"),
        ({"labels": np.array([0, 1]), "x": np.zeros((2, 1)), "classes": np.array(["a"])}, "0 to 0, found 0 to 1"),
        (TWO | {"is_test": np.array([1])}, r"'is_test': expected shape .2,. as"),
        (TWO | {"is_test": np.array([0.5, 1])}, "'is_test': expected true"),
        (TWO | {"is_test": np.array([0, 0])}, "found 0 of 2 marked as test"),
        (TWO | {"groups": np.array([0])}, r"'groups': expected shape .2,. as"),
        (TWO | {"x": np.zeros((2, 1), complex)}, "'x': expected real numbers, found complex128"),
        ({"labels": np.array([0, 2]), "x": np.zeros((2, 1))}, "expected every number from 0 to C-1, found 2 different"),
        ({"labels": np.array([0, 1]), "x": np.array([[1.0], [np.nan]])}, "view 'x': expected finite numbers"),
        (TWO | {"x_present": np.array([1, 0])}, r"'x_present': expected bool of shape \(2,\), found int64 of shape"),
        (TWO | {"x_present": np.array([[True], [True]])}, r"'x_present': .* found bool of shape \(2, 1\); convert"),
        (TWO | {"y_present": np.array([True, True])}, "'y_present': expected a view 'y' beside it, found none; add"),
        (TWO | {"x_present": np.array([True, False])}, "expected every sample in one view or more, found 1 in none"),
        (TWO | {"x_rate": np.array([50, 50])}, r"'x_rate': expected one number in Hz, found int64 of shape \(2,\)"),
        (TWO | {"x_rate": np.array("fast")}, "'x_rate': expected one number in Hz, found <U4"),
        (TWO | {"x_rate": np.array(50)}, r"rate of view 'x': expected the rate of a signal .* found .* \(2, 1\)"),
        (TWO | {"x": np.zeros((2, 1, 3)), "x_rate": np.array(-1)}, "rate of view 'x': expected .* above 0, found -1"),
        ({"labels": np.array([], np.int64), "x": np.zeros((0, 1))}, "expected at least one sample"),
    ],
)  # fmt: skip
def test_an_npz_file_that_is_not_as_described(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(save(tmp_path / "bad.npz", **arrays))
    assert "bad" in str(caught.value)


# --- ids and splits


def test_samples_are_sorted_by_their_ids(tmp_path: Path) -> None:
    path = save(
        tmp_path / "mine.npz",
        labels=np.array([2, 0, 1]),
        x=np.array([[3.0], [1.0], [0.0]]),
        x_present=np.array([True, True, False]),
        y=np.array([[30.0], [10.0], [20.0]]),
        ids=np.array([9, 4, 7], np.uint16),
        is_test=np.array([1, 0, 0]),
        groups=np.array([3, 1, 2]),
        split=np.array(["test", "public", "validation"]),
    )

    data = load(str(path))

    assert data.ids.tolist() == [4, 7, 9]
    assert data.labels.tolist() == [0, 1, 2]
    assert data.views["x"].tolist() == [[1], [0], [3]]
    assert data.views["y"].tolist() == [[10], [20], [30]]
    assert data.present["x"].tolist() == [True, False, True]
    assert data.groups is not None
    assert data.groups.tolist() == [1, 2, 3]
    assert data.official_test is not None
    assert data.official_test.tolist() == [False, False, True]
    assert data.split is not None
    assert data.split.tolist() == [1, 2, 3]


def test_splits_may_be_numbers_and_public_samples_without_labels(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.npz", labels=np.array([-1, 0, 1]), x=np.zeros((3, 1)), split=np.array([1, 3, 2]))

    data = load(str(path))

    assert data.labels.tolist() == [-1, 0, 1]
    assert data.classes == ("0", "1")
    assert data.split is not None
    assert data.split.tolist() == [1, 3, 2]


def test_what_is_left_out_is_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notes = {"files": np.array(["a", "b"]), "scale": np.float64(0.1), "rate": np.array([25])}
    load(save(tmp_path / "plain.npz", labels=np.array([0, 1]), view=np.ones((2, 3)), **notes))
    assert caplog.messages == []

    strange = {"age": np.array([17.0, 18.0]), "words": np.array([["a"], ["b"]]), "short": np.ones(3, np.int16)}
    path = save(tmp_path / "mine.npz", labels=np.array([0, 1]), view=np.ones((2, 3)), **strange, **notes)
    assert set(load(path).views) == {"view"}
    assert caplog.messages == [
        f"{path}: expected numbers with two or more dimensions, such as array[:, None], in a view, found 'age' float64 "
        "(2,), 'words' <U1 (2, 1), 'short' int16 (3,); left out."
    ]


def test_numbers_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.npz", labels=np.array([0, 1]), huge=np.array([[1.0], [-1e300]]))
    with pytest.raises(
        UserError, match=r"'huge': expected numbers below 3\.4e38 in size.*, found -1e\+300; scale them"
    ):
        load(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"ids": np.array([1, 1])},
            "'ids': expected a whole number of its own for each sample, found 1 that another one has",
        ),
        ({"ids": np.array([1.0, 2.0])}, "'ids': expected a whole number of its own for each sample, found float64"),
        ({"ids": np.array([1])}, r"'ids': expected shape \(2,\) as the labels, found \(1,\)"),
        ({"split": np.array(["test", "tset"])}, "'split': expected the names train, public, .*, found 'tset'"),
        ({"split": np.array([0, 4])}, "'split': expected the names .*, or their numbers 0 to 3, found '4'"),
    ],
)
def test_wrong_ids_and_splits_are_refused(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = save(tmp_path / "mine.npz", **{"labels": np.array([0, 1]), "x": np.zeros((2, 1)), **change})
    with pytest.raises(UserError, match=problem):
        load(str(path))
