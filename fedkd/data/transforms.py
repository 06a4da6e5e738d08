"""What can follow an ``@`` in a view's name: one table of transforms, and how rows of a base view run through them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fedkd.data import qualities, signals, spectrogram
from fedkd.data.sources.dataset import signal_remedy
from fedkd.errors import UserError, unknown

Rows = Callable[[Tensor], Tensor]  # rows (N, ...) to as many rows

_WHOLE = r"([1-9][0-9]*)"
_DECIMAL = r"((?:0|[1-9][0-9]*)(?:\.[0-9]*[1-9])?)"  # a number is written in one way, so that a view has one name
_IMAGE_RANK, _SIGNAL_RANK = 3, 2  # of one sample
_JPEG_CHANNELS = (1, 3)
_CHUNK_ROWS, _CHUNK_VALUES = 4096, 2**23  # rows, and values, transformed at a time, which bounds the memory


@dataclass(frozen=True)
class Place:
    """What reaches a transform, and where in a view's name.

    Attributes:
        name: the name as far as this transform, such as ``image@16@jpeg30``.
        base: the base view, shape ``(N, ...)``.
        shape: of one sample that reaches the transform.
        rate: samples per second; None if unknown, or if the last axis is not one of samples.
    """

    name: str
    base: Tensor
    shape: tuple[int, ...]
    rate: float | None


@dataclass(frozen=True)
class Transform:
    """A row of the table.

    Attributes:
        example: how it is written.
        pattern: all ways to write it, its number as the one group.
        above: a number that is too small.
        most: the largest number.
        expected: the same for people.
        meaning: one line for people.
        bind: checks what reaches it, and returns the function of rows and the rate behind it.
        default: the number if none is written.
    """

    example: str
    pattern: str
    above: float
    most: float
    expected: str
    meaning: str
    bind: Callable[[Place, float], tuple[Rows, float | None]]
    default: float = 0.0


@dataclass(frozen=True)
class Step:
    """A transform as a view's name asks for it."""

    text: str
    number: float
    transform: Transform


def parse_step(name: str, text: str) -> Step:
    """Find the transform that a text, without its ``@``, asks for.

    Args:
        name: the view's name, for the errors.
        text: such as ``jpeg30``.

    Raises:
        UserError: there is no such transform, or its number is wrong.
    """
    word = "".join(filter(str.isalpha, text))
    if word not in TRANSFORMS:
        known = [f"@{transform.example}" for transform in TRANSFORMS.values()]
        raise unknown("transform", f"@{text}", known, where=f"view {name!r}")
    transform = TRANSFORMS[word]
    match = re.fullmatch(transform.pattern, text)
    number = float(match[1] or transform.default) if match else transform.above
    if not transform.above < number <= transform.most:
        wanted = f"expected {transform.expected}, such as '@{transform.example}'"
        raise UserError(f"view {name!r}: {wanted}, found '@{text}'; correct it.")
    if match and match[1] and number == transform.default:
        raise UserError(
            f"view {name!r}: expected '@{word}', which means the same, found '@{text}'; leave the number out."
        )
    return Step(text, number, transform)


def bind(place: Place, steps: Sequence[Step]) -> Rows:
    """Return the function that takes rows of a base view through some transforms, left to right.

    Args:
        place: the base view before any transform.
        steps: the transforms.

    Raises:
        UserError: a transform does not suit what reaches it.
    """
    functions: list[Rows] = []
    sample = torch.zeros(1, *place.shape)
    for step in steps:
        place = replace(place, name=f"{place.name}@{step.text}", shape=tuple(sample.shape[1:]))
        function, rate = step.transform.bind(place, step.number)
        functions.append(function)
        sample, place = function(sample), replace(place, rate=rate)

    def through(rows: Tensor) -> Tensor:
        for function in functions:
            rows = function(rows)
        return rows

    return through


def in_chunks(function: Rows, rows: Tensor) -> Tensor:
    """Apply a function of rows to some at a time."""
    at_once = max(1, min(_CHUNK_ROWS, _CHUNK_VALUES // max(1, rows[0].numel())))
    return torch.cat([function(chunk) for chunk in torch.split(rows, at_once)])


# -- each transform: what it takes, and the function


def _size(place: Place, number: float) -> tuple[Rows, None]:
    _expect_images(place)
    size, largest = int(number), min(place.shape[1:])
    if size > largest:
        found = f"expected a size of at most {largest}, the original's, found {size}"
        raise UserError(f"view {place.name!r}: {found}; lower it.")
    return partial(qualities.resized, size=size), None


def _jpeg(place: Place, number: float) -> tuple[Rows, None]:
    _expect_range(place)
    if place.shape[0] not in _JPEG_CHANNELS:
        found = f"expected images of one channel or three, found {place.shape[0]}"
        raise UserError(f"view {place.name!r}: {found}; drop the transform.")
    return partial(qualities.jpeg, quality=int(number)), None


def _blur(place: Place, number: float) -> tuple[Rows, None]:
    _expect_images(place)
    return partial(qualities.blurred, sigma=number), None


def _bits(place: Place, number: float) -> tuple[Rows, None]:
    _expect_range(place)
    return partial(qualities.quantised, bits=int(number)), None


def _noise(place: Place, number: float) -> tuple[Rows, float | None]:
    return partial(qualities.noisy, deviation=number, purpose=place.name), place.rate


def _hz(place: Place, number: float) -> tuple[Rows, float]:
    old = _expect_rate(place)
    if number > old:
        found = f"expected a rate of at most {old:g} Hz, which is what there is, found {number:g}"
        raise UserError(f"view {place.name!r}: {found}; lower it.")
    share = signals.ratio(old, number)
    if share is None:
        wanted = f"expected a ratio of whole numbers up to {signals.LARGEST_TERM}"
        raise UserError(f"view {place.name!r}: {wanted}, found {number:g} to {old:g} Hz; choose a rounder rate.")
    return partial(signals.resampled, share=share), number


def _logmel(place: Place, number: float) -> tuple[Rows, None]:
    rate, mels = _expect_rate(place), int(number)
    channels, length = place.shape
    window = spectrogram.window_length(rate)
    if channels != 1 or length < window:
        wanted = f"expected audio of one channel and at least {window} samples (32 ms)"
        raise UserError(f"view {place.name!r}: {wanted}, found {channels} and {length}; drop the transform.")
    most = spectrogram.most_mels(rate, mels)
    if mels > most:
        found = f"expected at most {most} mel bands at {rate:g} Hz, as more would be empty, found {mels}"
        raise UserError(f"view {place.name!r}: {found}; lower it.")
    return partial(spectrogram.log_mel, rate=rate, mels=mels), None


def _expect_images(place: Place) -> None:
    if len(place.shape) != _IMAGE_RANK:
        raise UserError(
            f"view {place.name!r}: expected images (N, C, H, W), found {_shown(place)}; drop the transform."
        )


def _expect_range(place: Place) -> None:
    """Refuse what are no images in [0, 1] to begin with; what noise adds to them is clipped, as in a camera."""
    _expect_images(place)
    if place.base.ndim != _IMAGE_RANK + 1:
        found = f"found those made from {tuple(place.base.shape)}"
        raise UserError(f"view {place.name!r}: expected images with values in [0, 1], {found}; drop the transform.")
    low, high = float(place.base.min()), float(place.base.max())
    if low < 0 or high > 1:
        found = f"found {low:g} to {high:g}"
        raise UserError(f"view {place.name!r}: expected images with values in [0, 1], {found}; scale them first.")


def _expect_rate(place: Place) -> float:
    if len(place.shape) != _SIGNAL_RANK:
        found = f"expected signals (N, channels, length), found {_shown(place)}"
        raise UserError(f"view {place.name!r}: {found}; {signal_remedy(1 + len(place.shape), 'drop the transform')}.")
    if place.rate is None:
        remedy = f"add {place.name.partition('@')[0]}_rate to its .npz, or drop the transform"
        raise UserError(f"view {place.name!r}: expected a sampling rate in the data set, found none; {remedy}.")
    return place.rate


def _shown(place: Place) -> tuple[int, ...]:
    return (len(place.base), *place.shape)


# By the letters of their names; a size has none.
TRANSFORMS: Mapping[str, Transform] = {
    "": Transform(
        "16", _WHOLE, 0, 1e9, "a size of 1 or more", "images at 16x16 pixels: antialiased, never larger", _size
    ),
    "jpeg": Transform(
        "jpeg30", f"jpeg{_WHOLE}", 0, 95, "a quality from 1 to 95", "images as JPEG of quality 30, decoded again", _jpeg
    ),
    "blur": Transform(
        "blur1.5", f"blur{_DECIMAL}", 0, 100, "pixels above 0, up to 100, without needless zeros",
        "images under a Gaussian filter with a standard deviation of 1.5 pixels", _blur,
    ),
    "bits": Transform(
        "bits4", f"bits{_WHOLE}", 0, 8, "a bit depth from 1 to 8", "images of 4 bits: 16 levels from 0 to 1", _bits
    ),
    "noise": Transform(
        "noise0.1", f"noise{_DECIMAL}", 0, 1e6, "a standard deviation above 0, up to 1e6, without needless zeros",
        "Gaussian noise of standard deviation 0.1, drawn once, not clipped; any view", _noise,
    ),
    "hz": Transform(
        "25hz", f"{_DECIMAL}hz", 0, 1e6, "a rate above 0, up to 1e6, without needless zeros",
        "signals and audio at 25 samples per second: antialiased, never more than there are", _hz,
    ),
    "logmel": Transform(
        "logmel", f"logmel{_WHOLE}?", 0, 256, "up to 256 mel bands",
        "log-mel spectrogram of audio, 32 bands; 64 with @logmel64", _logmel, spectrogram.MELS,
    ),
}  # fmt: skip
