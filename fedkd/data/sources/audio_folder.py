"""The user's own data as a folder of recordings."""

import wave
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from fedkd.data.sources.arrays import Array
from fedkd.data.sources.dataset import DataSet
from fedkd.data.sources.files import READ_ERRORS, expect_classes, folders, unreadable
from fedkd.data.sources.recordings import first_second
from fedkd.errors import UserError

_ENDING = ".wav"


def is_audio_folder(files: Iterable[Path]) -> bool:
    """Whether these files, of a folder of samples, are recordings."""
    return any(file.suffix.lower() == _ENDING for file in files)


def read_audio_folder(path: Path) -> DataSet:
    """Read a folder of recordings as :func:`fedkd.data.sources.load` describes it.

    The view is ``audio`` ``(N, 1, rate)`` in [-1, 1]; samples are sorted by class and file name.

    Raises:
        UserError: a file cannot be read, classes of train and test differ, or files differ in their rate.
    """
    parts = [_listed(part) for part in folders(path)]
    classes = tuple(parts[0])
    expect_classes(path / "test", tuple(parts[-1]), classes)
    files = [(file, label) for part in parts for label, name in enumerate(classes) for file in part[name]]
    sounds, rate = _read(path, [file for file, _ in files])
    train = sum(len(found) for found in parts[0].values())
    return DataSet(
        path.name,
        {"audio": torch.from_numpy(sounds)},
        torch.tensor([label for _, label in files], dtype=torch.int64),
        classes,
        official_test=torch.arange(len(files)) >= train if len(parts) > 1 else None,
        rates={"audio": rate},
    )


def _listed(folder: Path) -> dict[str, list[Path]]:
    """Return the recordings of each class, by its name, in sorted order; folders without any are left out."""
    found = {part.name: _recordings(part) for part in sorted(folder.iterdir()) if part.is_dir()}
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise unreadable(folder, f"an audio folder <class>/<file>{_ENDING}", ValueError("it holds none"))
    return found


def _recordings(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and is_audio_folder([file]))


def _read(folder: Path, files: list[Path]) -> tuple[Array, int]:
    """Read recordings of one rate, float32, shape ``(N, 1, rate)``."""
    found = []
    for file in files:
        try:
            found.append(first_second(file.name, file.read_bytes()))
        except (*READ_ERRORS, wave.Error) as error:
            raise unreadable(file, "a WAV file with one channel of 16 bits", error) from error
    rates = Counter(rate for _, rate in found)
    if len(rates) > 1:
        told = ", ".join(f"{rate} Hz ({count} files)" for rate, count in rates.most_common(5))
        raise UserError(f"{folder}: expected recordings of one sampling rate, found {told}; resample them.")
    return np.stack([sound for sound, _ in found])[:, np.newaxis], next(iter(rates))
