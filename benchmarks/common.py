"""What the benchmarks share: memory over all processes, and as many digits as clients need."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

PER_CLIENT, TEST = 17, 97


@contextmanager
def noisy_digits(clients: int) -> Iterator[str | None]:
    """Write a data set with 17 digits for each client and 97 to test on, and yield its path; None for no client.

    They are scikit-learn's 8x8 digits, drawn with replacement, with some noise: there are but 1,797.
    """
    if not clients:
        yield None
        return
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    source = np.random.default_rng(0)
    rows = source.integers(0, len(labels), PER_CLIENT * clients + TEST)
    images = pixels[rows].reshape(-1, 1, 8, 8) / 16 + source.normal(0, 0.05, (len(rows), 1, 8, 8))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.npz"
        np.savez(path, image=images.astype(np.float32), labels=labels[rows].astype(np.int64))
        yield str(path)


class Memory:
    """The peak, in bytes, of the proportional memory of this process and all that descend from it (Linux)."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        """Watch."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop watching."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(1.0):
            self.peak = max(self.peak, sum(_proportional(process) for process in _descendants(os.getpid())))


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def _proportional(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
