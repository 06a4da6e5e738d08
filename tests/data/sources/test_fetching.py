"""Files of built-in data sets: found, missing, downloaded."""

from collections.abc import Callable
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from fedkd.config import Experiment
from fedkd.data import federation
from fedkd.data.sources import load
from fedkd.errors import UserError
from tests.data.sources.conftest import save, write_idx


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


def test_missing_idx_files_are_named(small_mnist: Path) -> None:
    (small_mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(UserError, match=r"expected t10k-images-idx3-ubyte .* in .*raw, not found; .*FEDKD_DATA"):
        load("mnist", root=str(small_mnist))


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


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "hapt_windows.npz", label=np.array([0]))
    with pytest.raises(UserError, match=r"hapt_windows.npz: expected sha256 3715acd4\w+, found \w+; replace") as caught:
        load("hapt", root=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("download", [True, False])
def test_a_missing_file_without_a_known_download_is_told_where_to_be_put(tmp_path: Path, download: bool) -> None:
    with pytest.raises(UserError) as caught:
        load("semeion", root=str(tmp_path), download=download)
    assert str(caught.value) == (
        f"data set 'semeion': expected semeion.npz in {tmp_path}, not found; put them there, or "
        "let FEDKD_DATA name the folder that holds 'digits-multi'; no download of them is known."
    )


def test_missing_parts_of_a_composed_data_set_are_named_with_their_folders(small_mnist: Path) -> None:
    (small_mnist / "mnist").mkdir()
    (small_mnist / "MNIST").rename(small_mnist / "mnist" / "MNIST")
    with pytest.raises(UserError) as caught:
        load("spoken-digits", root=str(small_mnist))
    assert str(caught.value) == (
        f"data set 'spoken-digits': expected fsdd/recordings.tar.xz, sign-digits/sign_digits_64.npz in {small_mnist}, "
        "not found; put them there, or let FEDKD_DATA name the folder that holds 'fsdd', 'mnist', 'sign-digits'; "
        "no download of them is known."
    )


def test_missing_batches_are_downloaded_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, bool]] = []
    monkeypatch.setattr("torchvision.datasets.CIFAR10", lambda root, *, download: calls.append((root, download)))
    with pytest.raises(UserError, match=r"expected data_batch_1, .*, batches.meta in .*cifar-10-batches-py, not found"):
        load("cifar10", root=str(tmp_path), download=True)  # still missing
    assert calls == [(str(tmp_path), True)]
