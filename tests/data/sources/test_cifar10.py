"""CIFAR-10: its pickles, opened only if they are the published ones, and its JPEG copy."""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fedkd.data.sources import DataSet, load
from fedkd.data.sources.cifar10 import read_batches, read_jpeg
from fedkd.errors import UserError
from tests.data.sources.conftest import save


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like CIFAR-10's with one training image in each batch and two test images; torchvision knows it."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    files = {f"data_batch_{number}": ([number], [number]) for number in range(1, 6)}
    files["test_batch"] = ([6, 7], [0, 9])
    contents = {
        name: {"data": np.array(levels, np.uint8)[:, None].repeat(3072, axis=1), "labels": labels}
        for name, (levels, labels) in files.items()
    }
    contents["data_batch_1"]["data"][0, 1024:2048] = 255  # the green channel
    contents["data_batch_1"]["data"][0, 1] = 51  # red, second pixel of the first row
    contents["batches.meta"] = {"label_names": [f"c{number}" for number in range(10)]}
    checksums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        checksums[name] = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
    known = [[name, checksums[name]] for name in files]
    monkeypatch.setattr("torchvision.datasets.CIFAR10.train_list", known[:5])
    monkeypatch.setattr("torchvision.datasets.CIFAR10.test_list", known[5:])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": checksums["batches.meta"]}
    monkeypatch.setattr("torchvision.datasets.CIFAR10.meta", meta)
    return tmp_path


def test_batches_are_read_in_their_order(batches: Path) -> None:
    data = load("cifar10", root=str(batches))
    images = data.views["image"]
    assert images.shape == (7, 3, 32, 32)
    assert data.labels.tolist() == [1, 2, 3, 4, 5, 0, 9]
    assert data.official_test is not None
    assert data.official_test.tolist() == [False] * 5 + [True] * 2
    assert data.classes == tuple(f"c{number}" for number in range(10))
    assert images[0, 1].unique().tolist() == [1]
    assert float(images[0, 0, 0, 1]) == pytest.approx(0.2)
    np.testing.assert_allclose(images[1:, 0, 0, 0], np.arange(2, 8) / 255, rtol=1e-6)


def test_a_pickle_that_is_not_the_published_one_is_never_opened(batches: Path) -> None:
    trap = batches / "sprung"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trap,)

    file = batches / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"data_batch_3: expected md5 \w{32}, found \w{32}; replace"):
        read_batches(batches)
    assert not trap.exists()
    pickle.loads(file.read_bytes())  # noqa: S301 - the trap works
    assert trap.exists()


def jpeg(level: int, size: tuple[int, int] = (32, 32)) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(file, "JPEG", quality=95)
    return np.frombuffer(file.getvalue(), np.uint8)


def jpegs(**changes: Any) -> dict[str, Any]:
    """Three training and two test images, each of one grey level, but for the changes."""
    parts: dict[str, Any] = {"classes": np.array(list("abcdefghij"))}
    for part, levels in {"train": [10, 20, 30], "test": [40, 50]}.items():
        images = [jpeg(level) for level in levels]
        parts[f"{part}_jpeg"] = np.concatenate(images)
        parts[f"{part}_offsets"] = np.cumsum([0, *map(len, images)])
        parts[f"{part}_labels"] = np.array([level // 10 for level in levels], np.uint8)
    return {**parts, "subset_train_index": np.array([0, 2]), "subset_test_index": np.array([1]), **changes}


def levels(data: DataSet) -> list[float]:
    return (data.views["image"].mean(dim=(1, 2, 3)) * 255).round().tolist()


def test_jpegs_are_decoded(tmp_path: Path) -> None:
    save(tmp_path / "cifar10_jpeg.npz", **jpegs())
    data = read_jpeg(tmp_path)
    assert data.views["image"].shape == (5, 3, 32, 32)
    assert levels(data) == [10, 20, 30, 40, 50]
    assert data.labels.tolist() == [1, 2, 3, 4, 5]
    assert data.official_test is not None
    assert data.official_test.tolist() == [False, False, False, True, True]


def test_the_small_set_is_the_files_own_subset(tmp_path: Path) -> None:
    save(tmp_path / "cifar10_jpeg.npz", **jpegs())
    data = read_jpeg(tmp_path, small=True)
    assert data.name == "cifar10-jpeg-small"
    assert levels(data) == [10, 30, 50]
    assert data.labels.tolist() == [1, 3, 5]
    assert data.official_test is not None
    assert data.official_test.tolist() == [False, False, True]


PIXEL = jpeg(5, size=(1, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_offsets": np.zeros(4, np.int64)}, r"a JPEG image 32x32 in row 0, found none .*cannot identify"),
        ({"test_offsets": np.array([0, 300, 400])}, "a JPEG image 32x32 in row 0, found none"),
        ({"test_jpeg": PIXEL, "test_offsets": np.array([0, len(PIXEL), 0])}, r"of shape \(1, 1, 3\)"),
        ({"test_offsets": np.array([0])}, "a JPEG image 32x32 in row 0, found none"),
        ({"train_jpeg": np.zeros((2, 2), np.uint8)}, r"'train_jpeg': expected shape \(N,\), found \(2, 2\)"),
    ],
)
def test_images_that_cannot_be_decoded_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "cifar10_jpeg.npz", **jpegs(**changes))
    with pytest.raises(UserError, match=message) as caught:
        read_jpeg(tmp_path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


# SHA-256 of the decoded pixels, N x 32 x 32 x 3, from the data's own README; other decoders may differ by a level.
TRAIN = "bf3aabd52be912dae02a0435296c4dab5289524b57f55cd162dc4796935a611b"
TEST = "5a6aa8185204d80b65d3dfb540696dadd5f10d185ded226a96665d3e0fc6259f"


def pixels(data: DataSet, rows: slice) -> str:
    digest = hashlib.sha256()
    for part in data.views["image"][rows].split(1000):
        digest.update((part * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_the_real_jpegs_are_decoded_to_the_known_pixels(shared_data: Path) -> None:
    data = load("cifar10-jpeg", root=str(shared_data / "cifar10-jpeg"))
    assert data.views["image"].shape == (60_000, 3, 32, 32)
    assert data.official_test is not None
    assert torch.nonzero(data.official_test).flatten().tolist() == list(range(50_000, 60_000))
    assert data.labels[:50_000].bincount().tolist() == [5000] * 10
    assert data.labels[50_000:].bincount().tolist() == [1000] * 10
    assert data.classes[3] == "cat"
    assert (pixels(data, slice(50_000)), pixels(data, slice(50_000, None))) == (TRAIN, TEST)


def test_the_real_small_set_is_stratified(shared_data: Path) -> None:
    data = load("cifar10-jpeg-small", root=str(shared_data / "cifar10-jpeg"))
    assert data.official_test is not None
    assert data.labels[~data.official_test].bincount().tolist() == [1000] * 10
    assert data.labels[data.official_test].bincount().tolist() == [200] * 10
