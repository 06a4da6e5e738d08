"""Data sets: built-in, from an .npz file and from an image folder."""

import gzip
import hashlib
import os
import struct
from collections.abc import Callable
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from fedkd.config import Experiment
from fedkd.data import federation, sources
from fedkd.data.sources import DataSet, load, names
from fedkd.errors import UserError


@pytest.fixture
def shared_data() -> Path:
    """The folder with the real data sets; their README gives the facts that are expected here."""
    folder = (Path(__file__).resolve().parents[2] / ".." / "shared" / "data").resolve()
    if not folder.is_dir():
        pytest.skip("the shared data sets are not beside this repository")
    return folder


def tiny(**changes: object) -> DataSet:
    """A valid data set of three samples, but for the changes."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "views": {"image": torch.zeros(3, 1, 2, 2), "sound": torch.ones(3, 5)},
        "labels": torch.tensor([0, 1, 1]),
        "classes": ("no", "yes"),
        **changes,
    }
    return DataSet(**fields)


# -- the data set itself


def test_ids_count_the_rows() -> None:
    assert tiny().ids.tolist() == [0, 1, 2]
    assert tiny().ids.dtype == torch.int64
    assert len(tiny()) == 3


def test_the_digest_depends_on_content_alone() -> None:
    turned = {"sound": torch.ones(3, 5), "image": torch.zeros(3, 2, 1, 2).transpose(1, 2)}
    assert tiny().digest == tiny(views=turned).digest
    assert len(bytes.fromhex(tiny().digest)) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"classes": ("no", "maybe")},
        {"labels": torch.tensor([0, 1, 0])},
        {"views": {"image": torch.zeros(3, 1, 2, 2)}},
        {"views": {"image": torch.zeros(3, 1, 4, 1), "sound": torch.ones(3, 5)}},
        {"views": {"image": torch.full((3, 1, 2, 2), 1e-30), "sound": torch.ones(3, 5)}},
        {"official_test": torch.tensor([False, False, True])},
        {"groups": torch.tensor([0, 0, 0])},
    ],
)
def test_any_change_of_content_changes_the_digest(change: dict[str, Any]) -> None:
    assert tiny(**change).digest != tiny().digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 1])}, "view 'image': expected float32 with 2 rows.*found float32 of shape .3, 1"),
        ({"labels": torch.tensor([0, 1, 2])}, "expected class numbers 0 to 1, found 0 to 2"),
        ({"labels": torch.tensor([0, -1, 1])}, "found -1 to 1"),
        ({"labels": torch.zeros(3)}, "expected int64 of shape .N,., found float32"),
        ({"labels": torch.zeros(0, dtype=torch.int64)}, "expected at least one sample"),
        ({"views": {}}, "expected at least one view"),
        ({"views": {"image": torch.zeros(3, 2, dtype=torch.float64)}}, "expected float32 .* found float64"),
        ({"views": {"image@4": torch.zeros(3, 2)}}, "without '@'"),
        ({"views": {"a": torch.tensor([[0.0], [torch.inf], [torch.nan]])}}, "NaN or infinity in 2 of 3 rows"),
        ({"official_test": torch.zeros(3)}, "official_test: expected torch.bool of shape .3,., found float32"),
        ({"groups": torch.zeros(4, dtype=torch.int64)}, "groups: expected .* found int64 of shape .4,."),
    ],
)
def test_data_that_does_not_fit_together_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"data set 'tiny': .*{message}") as caught:
        tiny(**change)
    assert "\n" not in str(caught.value)


# -- built-in


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


def test_a_data_set_is_loaded_once() -> None:
    assert load("digits") is load("digits")


def test_names_describe_each_data_set_in_one_line() -> None:
    assert set(names()) == {"digits", "mnist", "fashion-mnist"}
    assert all(text and "\n" not in text for text in names().values())


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown data set 'digit': did you mean 'digits'.*<file>.npz"):
        load("digit")


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def small_mnist(tmp_path: Path) -> Path:
    """A folder like MNIST's with four training and two test images, some files packed and some not."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.arange(6 * 2 * 3, dtype=np.uint8).reshape(6, 2, 3) * 7
    write_idx(raw / "train-images-idx3-ubyte.gz", images[:4])
    write_idx(raw / "train-labels-idx1-ubyte", np.array([5, 0, 4, 1], np.uint8))
    write_idx(raw / "t10k-images-idx3-ubyte", images[4:])
    write_idx(raw / "t10k-labels-idx1-ubyte.gz", np.array([9, 2], np.uint8))
    return tmp_path


def test_idx_files_are_read_packed_or_not(small_mnist: Path) -> None:
    data = load("mnist", root=str(small_mnist))
    expected = np.arange(36).reshape(6, 1, 2, 3) * 7 / 255
    np.testing.assert_allclose(data.views["image"], expected, rtol=1e-6)
    assert data.labels.tolist() == [5, 0, 4, 1, 9, 2]
    assert data.official_test is not None
    assert data.official_test.tolist() == [False] * 4 + [True] * 2


def test_the_environment_variable_names_the_folder_of_all_data_sets(
    small_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_mnist / "mnist").mkdir()
    (small_mnist / "MNIST").rename(small_mnist / "mnist" / "MNIST")
    monkeypatch.setenv("FEDKD_DATA", str(small_mnist))
    assert load("mnist").labels.tolist() == [5, 0, 4, 1, 9, 2]


def test_missing_idx_files_are_named(small_mnist: Path) -> None:
    (small_mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(UserError, match=r"expected t10k-images-idx3-ubyte .* in .*raw, not found; .*FEDKD_DATA"):
        load("mnist", root=str(small_mnist))


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Calls of torchvision's classes, which here write the missing test images of :func:`small_mnist`."""
    calls: list[tuple[str, str]] = []

    def standing_in_for(archive: str) -> Callable[..., None]:
        def download(root: str, *, download: bool) -> None:
            assert download
            calls.append((archive, root))
            raw = Path(root) / archive / "raw"
            raw.mkdir(parents=True, exist_ok=True)
            write_idx(raw / "t10k-images-idx3-ubyte", np.zeros((2, 2, 3), np.uint8))

        return download

    for archive in ("MNIST", "FashionMNIST"):
        monkeypatch.setattr(f"torchvision.datasets.{archive}", standing_in_for(archive))
    return calls


def test_missing_files_are_downloaded_when_asked(small_mnist: Path, downloads: list[tuple[str, str]]) -> None:
    (small_mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(UserError, match=r"not found; .* or set data\.download"):
        load("mnist", root=str(small_mnist))
    assert downloads == []
    assert not load("mnist", root=str(small_mnist), download=True).views["image"][4:].any()
    assert downloads == [("MNIST", str(small_mnist))]


def test_the_class_of_the_data_set_downloads_into_the_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, downloads: list[tuple[str, str]]
) -> None:
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"expected train-images-idx3-ubyte, train-labels-idx1-ubyte, .* not found"):
        load("fashion-mnist", download=True)  # still incomplete
    assert downloads == [("FashionMNIST", str(tmp_path / "fashion-mnist"))]


def test_what_is_there_is_not_downloaded(small_mnist: Path, downloads: list[tuple[str, str]]) -> None:
    assert len(load("mnist", root=str(small_mnist), download=True)) == 6
    assert len(load("digits", download=True)) == 1797
    path = save(small_mnist / "mine.npz", labels=np.array([0]), x=np.zeros((1, 1)))
    assert len(load(path, download=True)) == 1
    assert downloads == []


@pytest.mark.parametrize("asked", [True, False])
def test_an_experiment_can_ask_for_a_download(tmp_path: Path, downloads: list[tuple[str, str]], asked: bool) -> None:
    data = {"data.name": "mnist", "data.root": str(tmp_path), "data.download": asked}
    with pytest.raises(UserError, match="train-images-idx3-ubyte"):
        federation.build(Experiment().changed(**data))
    assert downloads == [("MNIST", str(tmp_path))] * asked


@pytest.mark.parametrize(
    "error",
    [RuntimeError("Error downloading\nTried x, got:\nno route"), URLError("no route"), IncompleteRead(b"no route")],
    ids=lambda error: type(error).__name__,
)
def test_a_download_that_fails_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(root: str, *, download: bool) -> None:
        raise error

    monkeypatch.setattr("torchvision.datasets.MNIST", failing)
    with pytest.raises(UserError, match=f"^{tmp_path}: expected to download MNIST into it, but: .*; check") as caught:
        load("mnist", root=str(tmp_path), download=True)
    assert "\n" not in str(caught.value)


def test_data_is_looked_for_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="data/fashion-mnist/FashionMNIST/raw, not found"):
        load("fashion-mnist")


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


# -- .npz


def save(path: Path, **arrays: ArrayLike) -> str:
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]
    return str(path)


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
        ({"labels": np.array([], np.int64), "x": np.zeros((0, 1))}, "expected at least one sample"),
    ],
)  # fmt: skip
def test_an_npz_file_that_is_not_as_described(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(save(tmp_path / "bad.npz", **arrays))
    assert "bad" in str(caught.value)


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


# -- image folder


def write_image(path: Path, level: int, size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)


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


def test_the_digest_is_a_plain_sha256_of_header_and_content() -> None:
    data = DataSet("one", {"x": torch.tensor([[0.5]])}, torch.tensor([0]), ("a",))
    header = b'["one", ["a"], [["labels", "torch.int64", [1]], ["view x", "torch.float32", [1, 1]]]]'
    content = struct.pack("<q", 0) + struct.pack("<f", 0.5)
    assert data.digest == hashlib.sha256(header + content).hexdigest()


# -- the cache


def test_the_cache_does_not_outgrow_memory() -> None:
    assert sources._read.cache_info().maxsize == 2


def test_a_path_is_resolved_before_it_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, label in (("one", 0), ("two", 1)):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "mine.npz", labels=np.array([label, 1]), x=np.zeros((2, 1)), classes=["a", "b"])
    found = []
    for folder in ("one", "two"):
        monkeypatch.chdir(tmp_path / folder)
        found.append(load("mine.npz").labels.tolist())
    assert found == [[0, 1], [1, 1]]
    assert load("mine.npz") is load("../two/mine.npz")


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_npz_file_is_read_again(tmp_path: Path, change: str) -> None:
    file = tmp_path / "mine.npz"
    path = save(file, labels=np.array([0, 1]), x=np.zeros((2, 1)), classes=["a", "b"])
    before, status = load(path), file.stat()
    assert load(path) is before
    if change == "size":
        save(file, labels=np.array([0, 1, 1]), x=np.zeros((3, 1)), classes=["a", "b"])
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        save(file, labels=np.array([1, 1]), x=np.zeros((2, 1)), classes=["a", "b"])
        assert file.stat().st_size == status.st_size
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert load(path).labels.tolist() == ([0, 1, 1] if change == "size" else [1, 1])


def test_a_changed_image_folder_or_idx_file_is_read_again(tmp_path: Path, small_mnist: Path) -> None:
    write_image(tmp_path / "pets" / "cat" / "a.png", 51)
    assert len(load(str(tmp_path / "pets"))) == 1
    write_image(tmp_path / "pets" / "cat" / "b.png", 51)
    assert len(load(str(tmp_path / "pets"))) == 2
    assert load("mnist", root=str(small_mnist)).labels[0] == 5
    write_idx(small_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.array([8, 0, 4, 1], np.uint8))
    os.utime(small_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte", ns=(1, 1))
    assert load("mnist", root=str(small_mnist)).labels[0] == 8
