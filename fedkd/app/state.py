"""What lasts from round to round: a client's models and tensors, addressed by client key and version.

The version of a client's state is the round whose reply the server accepted last. It goes out with every message, so a
task may run twice, a reply may be lost or refused, and the client still starts from the state that the server knows.
"""

import hashlib
import json
import math
import os
import re
import secrets
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from fedkd.errors import UserError
from fedkd.learner.model import Model, below

_CODES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64"},
}
"""Names of types in safetensors files."""

State = dict[str, Tensor]
RUN_ID = re.compile("[0-9a-f]{32}")
"""Name of a run: ours, since Flower gives a run that is gone on with another number."""
S = TypeVar("S")


def new_run_id() -> str:
    """Return a name that no other run has."""
    return secrets.token_hex(16)


def flatten(models: Mapping[str, Model], state: Mapping[str, Tensor]) -> State:
    """Return models and further tensors as one flat dictionary of tensors."""
    flat = {f"model/{name}/{key}": tensor for name, model in models.items() for key, tensor in model.tensors.items()}
    return flat | {f"state/{name}": tensor for name, tensor in state.items()}


def lasting(tensors: Mapping[str, Tensor]) -> State:
    """Return tensors as they last: without a graph, each contiguous and in memory of its own.

    As after a checkpoint, or a way through other processes: a sum over other strides has other bits.
    """
    return {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}


def model_tensors(flat: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return one model's tensors out of a flat state."""
    return below(flat, f"model/{name}/")


def other_tensors(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that the strategy keeps beside its models."""
    return below(flat, "state/")


def digest(*parts: Mapping[str, Tensor] | str) -> str:
    """Return the SHA-256 of tensors (names, types, shapes, contents, in the order of the names) and texts."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            sha.update(f"text {part}\n".encode())
            continue
        for name, tensor in sorted(part.items()):
            sha.update(_described(name, tensor.dtype, tensor.shape))
            sha.update(contents(tensor).data)
    return sha.hexdigest()


@lru_cache(4096)
def _described(name: str, dtype: torch.dtype, shape: torch.Size) -> bytes:
    return f"{name} {dtype} {tuple(shape)}\n".encode()


class States(Protocol, Generic[S]):
    """Where clients' states are kept."""

    def get(self, key: str, version: int) -> S | None:
        """Return a client's state; None for version 0, before its first round."""

    def put(self, key: str, version: int, state: S) -> None:
        """Keep a client's state; older ones than the last one asked for may be forgotten."""


class MemoryStates(Generic[S]):
    """States in this process: as tensors, or as references into Ray's object store."""

    def __init__(self) -> None:
        """Start empty."""
        self._states: dict[str, dict[int, S]] = {}

    def get(self, key: str, version: int) -> S | None:
        """Return a client's state, and forget what no message can ask for any more."""
        self.forget_before(key, version)
        return self._states[key][version] if version else None

    def forget_before(self, key: str, version: int) -> None:
        """Forget a client's states of older versions than this one."""
        versions = self._states.get(key, {})
        self._states[key] = {number: state for number, state in versions.items() if number >= version}

    def put(self, key: str, version: int, state: S) -> None:
        """Keep a client's state."""
        self._states.setdefault(key, {})[version] = state


class FolderStates:
    """States on disk, one safetensors file each: for clients in processes that come and go."""

    def __init__(self, folder: Path) -> None:
        """Keep the states in a folder, which is made if it does not exist."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str, version: int, expected: str = "", oldest: int | None = None) -> State | None:
        """Read a client's state, and forget what no message can ask for any more.

        Args:
            key: the client's name.
            version: of the state.
            expected: the SHA-256 of the state that the server knows; not compared if empty.
            oldest: version that a server which goes on from a checkpoint may ask for; older ones than this one, and
                than ``version``, are forgotten.

        Raises:
            FileNotFoundError: it is not there.
            UserError: the file is damaged, or holds another state.
        """
        state = _read(self._path(key, version), expected) if version else None
        kept = version if oldest is None else min(version, oldest)
        for path in self._folder.glob(f"{key}.*.safetensors"):
            number = path.name.removeprefix(f"{key}.").removesuffix(".safetensors")
            if number.isdecimal() and int(number) < kept:  # a copy that somebody has made is none of ours
                path.unlink(missing_ok=True)
        return state

    def put(self, key: str, version: int, state: State) -> None:
        """Write a client's state, complete or not at all, and remove what a process has left that was killed here."""
        for half in self._folder.glob(f".{key}.*.safetensors.*.tmp"):
            half.unlink(missing_ok=True)
        write_atomically(self._path(key, version), to_bytes(state))

    def _path(self, key: str, version: int) -> Path:
        return self._folder / f"{key}.{version}.safetensors"


def _read(path: Path, expected: str) -> State:
    content = path.read_bytes()
    try:
        state = from_bytes(content)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: expected a client's state, found a damaged file: {error}; restore it.") from error
    if expected and digest(state) != expected:
        what = f"expected the state that the server knows (SHA-256 {expected:.12}...)"
        raise UserError(f"{path}: {what}, found another one: the file is damaged or not of this run; restore it.")
    return state


def to_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the content of a safetensors file.

    Written here, several times as fast as by the library, which is made for a few large files; it is the library that
    reads them.

    Raises:
        TypeError: a tensor has a type that such a file cannot hold.
    """
    expect_storable(state)
    # By falling alignment, as the library does, so that every tensor lies at a multiple of its element size.
    ordered = sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header = _header(tuple((name, t.dtype, tuple(t.shape)) for name, t in ordered))
    return b"".join([header, *(contents(t).data for _, t in ordered)])


def expect_storable(state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that a safetensors file cannot hold.

    Raises:
        TypeError: one has another type or layout.
    """
    for name, tensor in state.items():
        if tensor.dtype not in _CODES or tensor.layout != torch.strided:
            found = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            raise TypeError(f"{name}: expected a type that can be stored, found {found}; convert it")


@lru_cache
def _header(layout: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]) -> bytes:
    """Return the header of a safetensors file: its size, then name, type, shape and place of every tensor as JSON."""
    entries, start = {}, 0
    for name, dtype, shape in layout:
        end = start + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def contents(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor's elements in their order, contiguous, on the CPU; shared with it wherever that is so already.

    Of a type that NumPy does not have, such as bfloat16, they are bytes in a row; a single number is a row of one.
    """
    if not _numpy_has(tensor.dtype):
        tensor = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return np.ascontiguousarray(tensor.numpy(force=True))


@lru_cache
def _numpy_has(dtype: torch.dtype) -> bool:
    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return False
    return True


def from_bytes(content: bytes) -> State:
    """Return the state that :func:`to_bytes` wrote, in the order of the names: the reader's own order is random."""
    return dict(sorted(load(content).items()))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash, or a full disk, leaves either the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Put the names in a folder on the disk: a new file's content alone does not survive a power cut."""
    if os.name != "posix":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
