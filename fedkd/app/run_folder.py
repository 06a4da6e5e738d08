"""The folder that every run leaves: complete enough to run it again; no crash loses a finished round."""

import errno
import hashlib
import json
import os
import platform
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any, Self

import torch

import fedkd
from fedkd.app.history import RoundRecord
from fedkd.app.loop import Run
from fedkd.app.source_digest import source_digest
from fedkd.app.state import RUN_ID, new_run_id, write_atomically
from fedkd.config import Experiment, dotted
from fedkd.data.federation import build
from fedkd.errors import RunError, UserError
from fedkd.learner.model import Model
from fedkd.learner.model_file import read_model, to_bytes
from fedkd.learner.plan import plan
from fedkd.strategy.registry import complete, find

FLOWER_LOG = "flower.log"
"""What Flower said; it is there before its server writes anything."""
EXPERIMENT, MANIFEST, SUMMARY, REPORT = "experiment.toml", "manifest.json", "summary.json", "report.html"
ROUNDS, CLIENTS, CHECKPOINTS, RUN = "rounds.jsonl", "clients.jsonl", "checkpoints", "run-id"
ALONE, GAINS = "alone", "gains.json"
"""Where the clients have also been trained alone: the run folder of that, and what each view gains."""
_INDECISIVE = {
    "engine": {"workers", "address", "gpus_per_worker", "timeout", "join_timeout", "checkpoint_every", "cohort_size"},
    "federation": {"min_clients"},
}
LIBRARIES = ("torch", "torchvision", "flwr", "ray", "numpy", "scikit-learn", "flwr-datasets")


class RunFolder:
    """One run's folder.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: Path, experiment: Experiment) -> None:
        """Make the folder, and write down what is about to be run.

        Raises:
            UserError: see :func:`claim`.
        """
        claim(path, besides=[FLOWER_LOG])
        self.path = path
        self._write(EXPERIMENT, complete(experiment).to_toml())
        self._write(MANIFEST, _pretty(manifest(experiment)))

    @classmethod
    def reopen(cls, path: Path, rounds: int) -> Self:
        """Open the folder of a run that was cut off, and remove what came after a round, and what is half written.

        Args:
            path: the folder.
            rounds: number of rounds that stay, byte for byte.
        """
        folder = cls.of(path)
        with _written_or_told(path):
            for half in path.rglob(".*.tmp"):
                if half.is_file():
                    half.unlink()
            content = (path / ROUNDS).read_bytes() if (path / ROUNDS).exists() else b""
        kept = b"".join(content.splitlines(keepends=True)[:rounds])
        if kept != content:
            write_file(path / ROUNDS, kept)
        return folder

    @classmethod
    def of(cls, path: Path) -> Self:
        """Return a run's folder as it is."""
        folder = cls.__new__(cls)
        folder.path = path
        return folder

    @property
    def run_id(self) -> str:
        """Name of the run, under which clients elsewhere keep their states; the same one when the run is gone on with.

        Raises:
            UserError: the file that holds it holds something else.
        """
        path = self.path / RUN
        if not path.exists():
            self._write(RUN, f"{new_run_id()}\n")
        found = path.read_text(encoding="utf-8", errors="replace").strip()
        if not RUN_ID.fullmatch(found):
            raise UserError(f"{path}: expected the name of the run, found {found!r:.80}; start the run again.")
        return found

    def add_round(self, record: RoundRecord) -> None:
        """Append a finished round: it is on the disk before the checkpoint that says so.

        Raises:
            RunError: it cannot be written.
        """
        with _written_or_told(self.path / ROUNDS), (self.path / ROUNDS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.to_json()) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self, run: Run, clients: Mapping[str, Mapping[str, Model]]) -> None:
        """Write what the clients measured, all trained models, and last the summary: it says that the run is complete.

        Args:
            run: the finished run.
            clients: each client's models, by client key and model name.

        Raises:
            RunError: something cannot be written; the last checkpoint is still there.
        """
        self._write(CLIENTS, "".join(json.dumps(client.to_json()) + "\n" for client in run.clients))
        for name, model in run.server_models.items():
            self._write(f"models/server/{name}.safetensors", to_bytes(model))
        for key, models in clients.items():
            for name, model in models.items():
                self._write(f"models/clients/{key}/{name}.safetensors", to_bytes(model))
        self._write(SUMMARY, _pretty(run.summary))

    def _write(self, name: str, content: str | bytes) -> None:
        write_file(self.path / name, content)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file of results, whole or not at all; its folder is made.

    Raises:
        RunError: it cannot be written.
    """
    with _written_or_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.encode() if isinstance(content, str) else content)


@contextmanager
def _written_or_told(path: Path) -> Iterator[None]:
    """Say in one line that something cannot be written, as on a full disk: the checkpoints are still there."""
    try:
        yield
    except OSError as error:
        remedy = "make room" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "let it be written"
        raise RunError(f"{path}: expected what can be written, but: {error}; {remedy}.") from error


def claim(path: Path, besides: Collection[str] = ()) -> None:
    """Make a folder for results; nothing that anybody has written is ever replaced.

    Args:
        path: the folder.
        besides: names of files that may be in it already.

    Raises:
        UserError: there are other files in it, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        found = sorted(file.name for file in path.iterdir() if file.name not in besides)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "nothing can be written into it", str(path))
    except OSError as error:
        raise UserError(f"{path}: expected a folder that can be made, but: {error}; choose another one.") from error
    if found:
        what, remedy = ", ".join(found[:3]), "choose another one"
        if {EXPERIMENT, FLOWER_LOG} & set(found):
            what, remedy = "an earlier run", f"{remedy}, or delete it"
            if next(path.glob(f"{CHECKPOINTS}/round-*"), None) and SUMMARY not in found:
                what, remedy = "a run that was cut off", f"go on with: fedkd resume {shlex.quote(str(path))}"
        raise UserError(f"{path}: expected a new or empty folder, found {what}; {remedy}.")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other process from writing into a run's folder; a process that dies lets go of it.

    Raises:
        UserError: another one is at it.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    folder = os.open(path, os.O_RDONLY)  # a lock of the folder itself leaves no file behind
    try:
        with suppress(OSError):  # a network file system may have no locks
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                found = "found one that is still running"
                raise UserError(f"{path}: expected a run that nobody else works on, {found}; wait for it.") from error
        yield
    finally:
        os.close(folder)


@contextmanager
def made_and_locked(path: Path) -> Iterator[None]:
    """Make a folder if it can be made, and lock it before anything is read or written there (see :func:`locked`)."""
    with suppress(OSError):  # who writes into it says so better
        path.mkdir(parents=True, exist_ok=True)
    with locked(path) if os.path.isdir(path) else nullcontext():  # not is_dir, which fails for a name too long
        yield


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder of this name, or the first numbered one beside it that is free: two runs never share one.

    It is gone afterwards if nothing was written into it.
    """
    for number in count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            break
        except FileExistsError:
            continue
        except OSError as error:
            what = f"{folder}: expected a folder that can be made, but: {error}"
            raise UserError(f"{what}; choose another one.") from error
    try:
        yield folder
    finally:
        for empty in (folder, folder.parent):
            with suppress(OSError):
                empty.rmdir()


def read_models(path: Path) -> tuple[dict[str, Model], dict[str, dict[str, Model]]]:
    """Return the trained models of a finished run's folder: the server's by name, and the clients' by key and name."""
    server = {file.stem: read_model(file) for file in sorted((path / "models" / "server").glob("*.safetensors"))}
    clients: dict[str, dict[str, Model]] = {}
    for file in sorted((path / "models" / "clients").glob("*/*.safetensors")):
        clients.setdefault(file.parent.name, {})[file.stem] = read_model(file)
    return server, clients


def read_lines(path: Path, most: int | None = None) -> list[dict[str, Any]]:
    """Return the complete records of a ``.jsonl`` file, or the first ones; none if it does not exist yet.

    Raises:
        ValueError: a line is no record; the message says which.
    """
    if not path.exists():
        return []
    records = []
    lines = path.read_bytes().splitlines(keepends=True)[:most]
    for number, line in enumerate((line for line in lines if line.endswith(b"\n")), start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {number} is none ({error})") from error
    return records


def manifest(experiment: Experiment) -> dict[str, Any]:
    """Return what the bits of a run depend on beside the experiment, but for code of one's own outside the strategy."""
    federation = build(experiment)
    return {
        "fedkd": fedkd.__version__,
        "code": source_digest(find(experiment.strategy)),
        "experiment": experiment_digest(experiment),
        "settings": decisive_settings(experiment),
        "seed": experiment.seed,
        "threads": experiment.engine.threads,
        "plan": experiment.engine.plan,
        "cohorts": [
            {
                "architecture": cohort.architecture,
                "view": cohort.view,
                "vectorised": cohort.vectorised,
                "chunks": [len(chunk) for chunk in cohort.chunks],
            }
            for cohort in plan(experiment, federation.holdings)
        ],
        "engine": experiment.engine.name,
        "workers": experiment.engine.workers,
        "data": federation.dataset.digest,
        "classes": list(federation.classes),
        "public_set": federation.public_digest,
        "samples": {
            split: len(getattr(federation.splits, split)) for split in ("train", "public", "validation", "test")
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def experiment_digest(experiment: Experiment) -> str:
    """Return the SHA-256 of all that an experiment decides about a run's results, and nothing of where it is run.

    Settings of its strategy that are left out count as their defaults, which stand in the run's folder. The fewest
    clients that it needs decide whether it goes on, and not what comes out.
    """
    return hashlib.sha256(complete(experiment).model_dump_json(exclude=_INDECISIVE).encode()).hexdigest()


def decisive_settings(experiment: Experiment) -> dict[str, Any]:
    """Return what :func:`experiment_digest` is of, as plain values by dotted key."""
    return dict(dotted(complete(experiment).model_dump(mode="json", exclude=_INDECISIVE)))


def other_settings(experiment: Experiment) -> dict[str, Any]:
    """Return the other settings, likewise: they say where and how it is run."""
    return dict(dotted(experiment.model_dump(mode="json", include=_INDECISIVE)))


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _pretty(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
