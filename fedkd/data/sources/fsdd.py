"""The Free Spoken Digit Dataset: recordings of digits in English, read from their archive without unpacking it."""

import lzma
import re
import tarfile
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fedkd.data.sources.arrays import Array
from fedkd.data.sources.dataset import DataSet
from fedkd.data.sources.digits import TEN_DIGITS
from fedkd.data.sources.files import READ_ERRORS, unreadable
from fedkd.data.sources.recordings import first_second

FILES = {"recordings.tar.xz": "b8b35d474e789df9f0a00af88d3baccf28622938bd10c5f6bdaaa7064ce2021d"}
RATE = 8000  # Hz

_TEST_RECORDINGS = 5  # of each digit and speaker, the first
_NAME = re.compile(r"(?:.*/)?(?P<digit>[0-9])_(?P<speaker>[a-z]+)_(?P<index>[0-9]+)\.wav")


def read_fsdd(folder: Path) -> DataSet:
    """Read ``audio`` ``(N, 1, 8000)`` in [-1, 1]: the first second of each recording, filled up with zeros.

    What longer recordings (20 of 3,000) hold after that is cut off. Samples are sorted by digit, speaker and number.
    The groups are the speakers in alphabetical order; the official test set is the first five recordings of each digit
    by each speaker.

    Raises:
        UserError: the archive or a recording in it cannot be read.
    """
    path = folder / "recordings.tar.xz"
    try:
        recordings = dict(_recordings(path))
        if not recordings:
            raise ValueError("it holds none")
    except (*READ_ERRORS, tarfile.TarError, lzma.LZMAError, wave.Error) as error:
        raise unreadable(path, "an archive of recordings <digit>_<speaker>_<number>.wav", error) from error
    keys = sorted(recordings)
    speakers = sorted({speaker for _, speaker, _ in keys})
    return DataSet(
        "fsdd",
        {"audio": torch.from_numpy(np.stack([recordings[key] for key in keys])[:, np.newaxis])},
        torch.tensor([digit for digit, _, _ in keys], dtype=torch.int64),
        TEN_DIGITS,
        official_test=torch.tensor([index < _TEST_RECORDINGS for _, _, index in keys]),
        groups=torch.tensor([speakers.index(speaker) for _, speaker, _ in keys], dtype=torch.int64),
        rates={"audio": RATE},
    )


def _recordings(path: Path) -> Iterator[tuple[tuple[int, str, int], Array]]:
    """Yield (digit, speaker, number) and the audio of each recording in the archive."""
    with tarfile.open(path, "r:xz") as archive:
        for member in archive:
            if not member.isfile():
                continue  # the folder
            name, file = _NAME.fullmatch(member.name), archive.extractfile(member)
            if name is None or file is None:
                raise ValueError(f"it holds {member.name!r}")
            yield (
                (int(name["digit"]), name["speaker"], int(name["index"])),
                first_second(member.name, file.read(), RATE)[0],
            )
