"""Digits by ear and eye."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedkd.data.sources import DataSet, load
from fedkd.data.sources.spoken_digits import partners


def labelled(labels: list[int], test: list[int]) -> DataSet:
    official = torch.zeros(len(labels), dtype=torch.bool)
    official[test] = True
    return DataSet("tiny", {"x": torch.zeros(len(labels), 1)}, torch.tensor(labels), ("a", "b"), official)


def test_partners_have_one_label_and_one_side_and_are_used_once() -> None:
    heard = labelled([0, 0, 0, 0, 1, 1, 1], test=[3, 6])
    seen = labelled([1, 1, 1, 0, 0, 0, 0, 0], test=[2, 6, 7])
    partner = partners(heard, seen, "image")
    assert partner.dtype == torch.int64
    assert (partner >= 0).all()
    assert len(partner.unique()) == 7
    assert heard.official_test is not None
    assert seen.official_test is not None
    assert seen.labels[partner].tolist() == heard.labels.tolist()
    assert seen.official_test[partner].tolist() == heard.official_test.tolist()


def test_recordings_go_without_when_images_run_out() -> None:
    partner = partners(labelled([0, 0, 0, 1], test=[]), labelled([0, 1, 0, 0], test=[3]), "sign")
    assert sorted(partner[:3].tolist()) == [-1, 0, 2]
    assert partner[3] == 1


def test_the_pairing_is_the_order_of_hashes() -> None:
    """Written down anew here, so that no other version of it can pass unseen."""

    def by_hash(purpose: str, count: int) -> list[int]:
        hashes = [hashlib.sha256(f"spoken-digits {purpose} {row}".encode()).hexdigest() for row in range(count)]
        return sorted(range(count), key=hashes.__getitem__)

    partner = partners(labelled([0] * 9, test=[]), labelled([0] * 12, test=[]), "image")
    expected = dict(zip(by_hash("image of recording", 9), by_hash("image", 12), strict=False))
    assert partner.tolist() == [expected[row] for row in range(9)]


@pytest.fixture
def real(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    monkeypatch.setenv("FEDKD_DATA", str(shared_data))
    return load("spoken-digits")


def fingerprints(images: Tensor) -> list[bytes]:
    return [image.contiguous().numpy().tobytes() for image in images]


def test_the_real_pairs(real: DataSet, shared_data: Path) -> None:
    assert {name: tuple(view.shape) for name, view in real.views.items()} == {
        "audio": (3000, 1, 8000),
        "image": (3000, 1, 28, 28),
        "sign": (3000, 1, 64, 64),
    }
    assert real.rates == {"audio": 8000}
    assert real.official_test is not None
    there = {"image": torch.ones(3000, dtype=torch.bool), "sign": real.present["sign"]}
    for view, name in (("image", "mnist"), ("sign", "sign-digits")):
        source = load(name, root=str(shared_data / name))
        assert source.official_test is not None
        published = Counter(
            zip(
                fingerprints(source.views["image"]),
                source.labels.tolist(),
                source.official_test.tolist(),
                strict=True,
            )
        )
        rows = there[view]
        used = Counter(
            zip(
                fingerprints(real.views[view][rows]),
                real.labels[rows].tolist(),
                real.official_test[rows].tolist(),
                strict=True,
            )
        )
        assert used <= published  # equal label, own side of the split, none more often than it was published


def test_real_signs_are_missing_for_a_part_of_each_speakers_training_recordings(real: DataSet) -> None:
    there = real.present["sign"]
    assert set(real.present) == {"sign"}
    assert int(there.sum()) == 1648 + 300  # all signs to train with; one for each test recording
    assert real.official_test is not None
    assert there[real.official_test].all()
    assert not real.views["sign"][~there].any()
    assert real.groups is not None
    for speaker in range(6):
        own = there[(real.groups == speaker) & ~real.official_test]
        assert 0.4 < float(own.float().mean()) < 0.8


def test_recordings_are_those_of_fsdd(real: DataSet, shared_data: Path) -> None:
    recordings = load("fsdd", root=str(shared_data / "fsdd"))
    assert torch.equal(real.views["audio"], recordings.views["audio"])
    assert torch.equal(real.labels, recordings.labels)
