"""Checkpoints: all that a run needs to go on after a round, whole on the disk or not there at all.

A generation is a folder ``round-NNNNN`` of safetensors and JSON, with the SHA-256 of every file in its manifest. Two
generations are kept. They share no file, so one damaged byte never costs both; a client's state that has not changed is
a hard link into the generation before these two, which is about to go. Where clients keep their own states, none of
them is in it, and it says so.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from fedkd.app.history import ClientRecord, RoundRecord
from fedkd.app.introduction import Said
from fedkd.app.roster import Participant
from fedkd.app.state import State, flatten, from_bytes, model_tensors, other_tensors, sync_folder, to_bytes
from fedkd.app.told import TOLD
from fedkd.errors import RunError, UserError
from fedkd.knowledge import Knowledge, KnowledgeError, kind
from fedkd.learner.base import ClientCard
from fedkd.learner.model import Model, below
from fedkd.learner.model_file import spec_of

FORMAT = 1
"""Number of this layout of the files."""
KEPT = 2
"""Generations that are kept: where the newest is damaged, the one before it is used."""
MANIFEST, PLAIN, SERVER = "manifest.json", "run.json", "server.safetensors"
HERE, NODES = "here", "nodes"
"""Where a checkpoint says that the clients' states are: in it, or with the clients."""
_COMMON = "common/"


@dataclass(frozen=True)
class Snapshot:
    """What a new server needs to go on after a round: everything but the clients' states.

    Attributes:
        record: of the round; its digest is the run's up to there.
        clients: one record per client, from the last evaluation.
        models: the server's models by name.
        state: further tensors that the strategy keeps at the server, by name.
        common: what every client receives in the next round; None for nothing.
        versions: round of the last reply that counts, by client key.
        state_digests: SHA-256 of each client's state of that version, by client key.
        roster: who takes part, by client key; nobody in the checkpoint of an earlier fedkd.
    """

    record: RoundRecord
    clients: Sequence[ClientRecord]
    models: Mapping[str, Model]
    state: State
    common: Knowledge | None
    versions: Mapping[str, int]
    state_digests: Mapping[str, str]
    roster: Mapping[str, Participant] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A generation that was read.

    Attributes:
        snapshot: the server.
        states: each client's state, by client key, of the version that the snapshot names; None where the clients keep
            them.
    """

    snapshot: Snapshot
    states: dict[str, State] | None


@dataclass(frozen=True)
class _Generation:
    """A generation that this process has written: its folder, its clients' versions, and its files' SHA-256 by name."""

    path: Path
    versions: Mapping[str, int]
    files: Mapping[str, str]


class _DamageError(ValueError):
    """Why a generation cannot be used."""


class Checkpoints:
    """Writes the checkpoints of one run.

    Args:
        folder: where they are; made with the first.
        after: round to go on after. What was written later, or not to its end, is removed: it is about to be redone.
    """

    def __init__(self, folder: Path, after: int = 0) -> None:
        """Remove what no run will go on from."""
        self._folder = folder
        self._written: list[_Generation] = []
        kept = {path for path in generations(folder) if _round_of(path) <= after}
        for path in [*folder.glob("round-*"), *folder.glob(".round-*")]:
            if path not in kept:
                shutil.rmtree(path)

    def save(self, snapshot: Snapshot, state_of: Callable[[str, int], State] | None) -> None:
        """Write a generation, and remove those that are then one too many.

        Args:
            snapshot: the server after the round.
            state_of: returns a client's state, given its key and version; None where the clients keep them.

        Raises:
            RunError: it cannot be written; the generations before it are still there.
        """
        path = self._folder / f"round-{snapshot.record.round:05d}"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            files = self._write(temporary, snapshot, state_of)
            temporary.rename(path)
            sync_folder(self._folder)
            sync_folder(self._folder.parent)
            self._written = [*self._written, _Generation(path, snapshot.versions, files)][-KEPT:]
            for old in generations(self._folder)[:-KEPT]:
                shutil.rmtree(old.replace(old.with_name(f".{old.name}.tmp")))
        except OSError as error:
            what = f"{path}: expected a checkpoint that can be written, but: {error}"
            raise RunError(f"{what}; the one before it is still there.") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write(self, folder: Path, snapshot: Snapshot, state_of: Callable[[str, int], State] | None) -> dict[str, str]:
        (folder / "clients").mkdir(parents=True)
        tensors = _server_tensors(snapshot)
        files = {
            SERVER: _write_file(folder / SERVER, to_bytes(tensors)),
            PLAIN: _write_file(folder / PLAIN, _plain(snapshot, tensors, NODES if state_of is None else HERE)),
        }
        if state_of is not None:
            for key, version in snapshot.versions.items():
                name = client_file(key)
                known = self._link(folder / name, key, version)
                files[name] = known or _write_file(folder / name, to_bytes(state_of(key, version)))
        _write_file(folder / MANIFEST, _manifest(files))
        sync_folder(folder / "clients")
        sync_folder(folder)
        return files

    def _link(self, path: Path, key: str, version: int) -> str | None:
        """Link an unchanged state, and return its SHA-256; None if there is none, or the file system has no links."""
        if len(self._written) < KEPT or self._written[0].versions.get(key) != version:
            return None
        old = self._written[0]
        try:
            os.link(old.path / client_file(key), path)
        except OSError:
            return None
        return old.files[client_file(key)]


def is_due(round_: int, every: int, rounds: int) -> bool:
    """Whether a checkpoint is due after a round: after each ``every``-th and the last one, or never for 0."""
    return every > 0 and (round_ % every == 0 or round_ == rounds)


def read_newest(folder: Path) -> Checkpoint:
    """Read the newest generation that is whole; a warning names each newer one that is not.

    Raises:
        UserError: there is none.
    """
    damaged = []
    for path in reversed(generations(folder)):
        try:
            found = _read(path)
        except _DamageError as error:
            damaged.append(f"{path.name} ({error})")
            continue
        for reason in damaged:
            TOLD.warning("checkpoint %s is damaged; going on from %s", reason, path.name)
        return found
    what = f"only damaged ones: {'; '.join(damaged)}" if damaged else "none"
    again = f"start again with: fedkd run {folder.parent / 'experiment.toml'}"
    raise UserError(f"{folder}: expected a checkpoint to go on from, found {what}; {again}.")


def client_file(key: str) -> str:
    """Return the name, in a generation, of the file of a client's state."""
    return f"clients/{key}.safetensors"


def generations(folder: Path) -> list[Path]:
    """Return the generations in a folder, oldest first."""
    found = (path for path in folder.glob("round-*") if path.name.removeprefix("round-").isdecimal())
    return sorted(found, key=_round_of)


def _round_of(path: Path) -> int:
    return int(path.name.removeprefix("round-"))


# -- writing


def _server_tensors(snapshot: Snapshot) -> dict[str, Tensor]:
    common = {} if snapshot.common is None else snapshot.common.to_tensors()
    return flatten(snapshot.models, snapshot.state) | {f"{_COMMON}{name}": tensor for name, tensor in common.items()}


def _plain(snapshot: Snapshot, tensors: Mapping[str, Tensor], states: str) -> bytes:
    values = {
        "record": snapshot.record.to_json(),
        "clients": [client.to_json() for client in snapshot.clients],
        "models": {name: asdict(model.spec) for name, model in snapshot.models.items()},
        "common": None if snapshot.common is None else type(snapshot.common).__name__,
        "versions": dict(snapshot.versions),
        "state_digests": dict(snapshot.state_digests),
        "states": states,
        "roster": {key: _plain_participant(participant) for key, participant in snapshot.roster.items()},
        # Order and place of the tensors, which safetensors does not keep: a strategy may depend on both.
        "tensors": {name: str(tensor.device) for name, tensor in tensors.items()},
    }
    return _encoded(values)


def _plain_participant(participant: Participant) -> dict[str, Any]:
    return {**asdict(participant.said), "node_id": participant.node_id}


def _manifest(files: Mapping[str, str]) -> bytes:
    values = {"format": FORMAT, "files": dict(sorted(files.items()))}
    return _encoded({**values, "set": _sha256(_encoded(values))})


def _encoded(values: Any) -> bytes:  # noqa: ANN401 - any JSON value
    return (json.dumps(values, indent=1) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_file(path: Path, content: bytes) -> str:
    """Write a file in a folder that nobody reads yet, and return its SHA-256."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return _sha256(content)


# -- reading


def _read(folder: Path) -> Checkpoint:
    """Read a generation.

    Raises:
        _DamageError: anything about it is not as it was written.
    """
    files = _read_manifest(folder)
    try:
        values = json.loads(_checked(folder, PLAIN, files))
        tensors = from_bytes(_checked(folder, SERVER, files))
        here = values.get("states", HERE) == HERE
        names = {key: client_file(key) for key in values["versions"]} if here else {}
        if set(files) != {PLAIN, SERVER, *names.values()} or values["record"]["round"] != _round_of(folder):
            raise _DamageError(f"{MANIFEST}: expected the files of this round, found others")
        states = {key: from_bytes(_checked(folder, name, files)) for key, name in names.items()}
        return Checkpoint(_snapshot(values, tensors), states if here else None)
    except (LookupError, TypeError, ValueError, SafetensorError, KnowledgeError) as error:
        raise error if isinstance(error, _DamageError) else _DamageError(f"{type(error).__name__}: {error}") from error


def _read_manifest(folder: Path) -> dict[str, str]:
    content = _content(folder, MANIFEST)
    try:
        values = json.loads(content)
        files: dict[str, str] = values["files"]
        whole = content == _manifest(files)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise _DamageError(f"{MANIFEST}: its SHA-256 is another one")
    return files


def _checked(folder: Path, name: str, files: Mapping[str, str]) -> bytes:
    content = _content(folder, name)
    if _sha256(content) != files.get(name):
        raise _DamageError(f"{name}: its SHA-256 is another one")
    return content


def _content(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise _DamageError(f"{name}: {error.strerror}") from error


def _snapshot(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Snapshot:
    flat = {name: tensors[name].to(device) for name, device in values["tensors"].items()}
    common = below(flat, _COMMON)
    return Snapshot(
        record=RoundRecord(**values["record"]),
        clients=[ClientRecord.from_json(client) for client in values["clients"]],
        models={name: Model(spec_of(spec), model_tensors(flat, name)) for name, spec in values["models"].items()},
        state=other_tensors(flat),
        common=None if values["common"] is None else kind(values["common"]).from_tensors(common),
        versions=values["versions"],
        state_digests=values["state_digests"],
        roster={key: _participant(said) for key, said in values.get("roster", {}).items()},
    )


def _participant(values: Mapping[str, Any]) -> Participant:
    said = {name: value for name, value in values.items() if name != "node_id"}
    return Participant(Said(**{**said, "card": ClientCard(**said["card"])}), values["node_id"])
