"""The table of transforms: which names and views each takes, and how they follow one another."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd.data import transforms
from fedkd.data.transforms import TRANSFORMS, Place, bind, in_chunks, parse_step
from fedkd.errors import UserError

IMAGES = torch.rand(3, 1, 12, 9, generator=torch.Generator().manual_seed(0))
SIGNALS = torch.randn(3, 2, 100, generator=torch.Generator().manual_seed(1))
AUDIO = torch.rand(2, 1, 800, generator=torch.Generator().manual_seed(2)) - 0.5


def place(base: Tensor, rate: float | None = None) -> Place:
    return Place("base", base, tuple(base.shape[1:]), rate)


def run(base: Tensor, text: str, rate: float | None = None) -> Tensor:
    steps = [parse_step(f"base@{text}", step) for step in text.split("@")]
    return bind(place(base, rate), steps)(base)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=lambda transform: transform.example)
def test_every_example_is_a_name_of_its_own_row(transform: transforms.Transform) -> None:
    step = parse_step("v", transform.example)
    assert step.transform is transform
    digits = "".join(letter for letter in transform.example if letter in "0123456789.")
    assert step.number == float(digits or 32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a size of 1 or more, such as '@16', found '@'; correct it"),
        ("0", "expected a size of 1 or more"),
        ("-4", "expected a size"),
        ("4.0", "expected a size"),
        ("04", "expected a size"),
        ("४", "expected a size"),
        ("1" * 400, "expected a size"),
        ("jpg30", r"unknown transform '@jpg30': did you mean '@jpeg30'\? Known: @16, @25hz, @bits4"),
        ("jpeg", "expected a quality from 1 to 95, such as '@jpeg30', found '@jpeg'"),
        ("jpeg0", "a quality from 1 to 95"),
        ("jpeg96", "a quality from 1 to 95"),
        ("jpeg30.5", "a quality from 1 to 95"),
        ("30jpeg", "a quality from 1 to 95"),
        ("blur0", "pixels above 0"),
        ("blur1.50", "without needless zeros"),
        ("blur.5", "pixels above 0"),
        ("noise-1", "a standard deviation above 0"),
        ("bits9", "a bit depth from 1 to 8"),
        ("hz25", "a rate above 0"),
        ("0hz", "a rate above 0"),
        ("logmel0", "up to 256 mel bands"),
        ("logmel257", "up to 256 mel bands"),
        ("logmel32", "expected '@logmel', which means the same, found '@logmel32'; leave the number out"),
        ("standard", "unknown transform '@standard'"),
    ],
)
def test_wrong_names_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_step("image@" + text, text)
    assert str(caught.value).startswith(f"view 'image@{text}': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "text", "rate", "message"),
    [
        (SIGNALS, "16", None, r"'base@16': expected images \(N, C, H, W\), found \(3, 2, 100\)"),
        (SIGNALS, "jpeg30", None, r"expected images .*, found \(3, 2, 100\); drop"),
        (SIGNALS, "blur2", None, "expected images"),
        (IMAGES * 255, "bits4", None, r"values in \[0, 1\], found 0.* to 2\d\d[.\d]*; scale"),
        (IMAGES - 0.5, "jpeg4", None, r"values in \[0, 1\]"),
        (IMAGES.repeat(1, 2, 1, 1), "jpeg4", None, "images of one channel or three, found 2"),
        (IMAGES, "8@9", None, "'base@8@9': expected a size of at most 8, the original's, found 9"),
        (IMAGES, "25hz", 50.0, r"expected signals \(N, channels, length\), found \(3, 1, 12, 9\)"),
        (SIGNALS, "25hz", None, "expected a sampling rate in the data set, found none; add base_rate to"),
        (SIGNALS, "51hz", 50.0, "expected a rate of at most 50 Hz, which is what there is, found 51"),
        (SIGNALS, "25hz@26hz", 50.0, "'base@25hz@26hz': expected a rate of at most 25 Hz"),
        (SIGNALS, "7999hz", 8000.0, "a ratio of whole numbers up to 1000, found 7999 to 8000 Hz"),
        (SIGNALS, "logmel", 1000.0, "audio of one channel and at least 32 samples .*, found 2 and 100"),
        (AUDIO, "logmel", 50000.0, "at least 1600 samples .* found 1 and 800"),
        (AUDIO, "logmel200", 8000.0, r"at most \d+ mel bands at 8000 Hz"),
        (AUDIO, "logmel@25hz", 8000.0, "expected signals"),
        (
            AUDIO.abs(),
            "logmel@bits4",
            8000.0,
            r"expected images with values in \[0, 1\], found those made from \(2, 1, 800\); drop",
        ),
        (AUDIO[:, 0], "logmel", 8000.0, r"signals \(N, channels, length\), found \(2, 800\); give .* array\[:, None\]"),
    ],
)
def test_views_of_the_wrong_kind_are_refused(base: Tensor, text: str, rate: float | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(base, text, rate)


def test_transforms_follow_one_another_left_to_right() -> None:
    black_and_white = run(IMAGES, "bits1")
    assert set(black_and_white.unique().tolist()) == {0.0, 1.0}
    assert len(run(IMAGES, "bits1@3").unique()) > 2
    assert set(run(IMAGES, "3@bits1").unique().tolist()) <= {0.0, 1.0}
    assert run(IMAGES, "3@bits1").shape == (3, 1, 3, 3)


def test_the_rate_behind_a_transform_is_the_one_it_left() -> None:
    """800 samples at 8 kHz are 200 at 2 kHz, with windows of 64 and hops of 32: seven frames, as before."""
    assert run(AUDIO, "2000hz@logmel8", 8000.0).shape == (2, 1, 8, 7)
    assert run(AUDIO, "noise0.1@logmel", 8000.0).shape == (2, 1, 32, 7)
    assert run(AUDIO, "logmel@4", 8000.0).shape == (2, 1, 4, 4)


def test_noise_is_the_same_wherever_it_is_drawn_and_other_noise_for_another_name() -> None:
    first = run(SIGNALS, "noise0.5")
    np.testing.assert_allclose(float((first - SIGNALS).std()), 0.5, atol=0.5 / 1200**0.5 * 4)
    assert torch.equal(run(SIGNALS, "noise0.5"), first)
    assert torch.equal(run(SIGNALS[1:], "noise0.5"), first[1:])
    twice = run(SIGNALS, "noise0.5@noise0.5") - first
    assert not torch.equal(twice, first - SIGNALS)
    assert torch.equal(run(IMAGES, "noise0.1@8"), run(run(IMAGES, "noise0.1"), "8"))


def test_noise_may_leave_the_range_and_what_follows_clips() -> None:
    noisy = run(IMAGES, "noise0.5")
    assert float(noisy.min()) < 0
    assert float(noisy.max()) > 1
    assert torch.equal(run(IMAGES, "noise0.5@bits1"), (noisy > 0.5).float())


def test_chunks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def double(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return 2 * rows

    rows = torch.arange(30.0).reshape(10, 3)
    monkeypatch.setattr(transforms, "_CHUNK_VALUES", 13)
    assert torch.equal(in_chunks(double, rows), 2 * rows)
    assert seen == [4, 4, 2]
    monkeypatch.setattr(transforms, "_CHUNK_VALUES", 1)  # a row is never divided
    assert torch.equal(in_chunks(double, rows[:2]), 2 * rows[:2])
