"""Clients' states: addressed by version, whole or not there, and told apart by every bit."""

import hashlib
import os
import random
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedkd.app import state as state_module
from fedkd.app.state import (
    FolderStates,
    MemoryStates,
    State,
    States,
    digest,
    flatten,
    from_bytes,
    model_tensors,
    other_tensors,
    to_bytes,
    write_atomically,
)
from fedkd.learner.model import Model
from fedkd.models import ModelSpec

SPEC = ModelSpec("mlp", (1, 8, 8), 10, 16)


def state(value: float = 0.0) -> State:
    return {"model/student/w": torch.full((2, 3), value), "state/seen": torch.tensor(int(value))}


def same(left: State | None, right: State) -> bool:
    return (
        left is not None
        and left.keys() == right.keys()
        and all(left[name].dtype == t.dtype and torch.equal(left[name], t) for name, t in right.items())
    )


@pytest.fixture(params=["memory", "folder"])
def states(request: pytest.FixtureRequest, tmp_path: Path) -> States[State]:
    return MemoryStates() if request.param == "memory" else FolderStates(tmp_path / "states")


# --- versions


def test_before_its_first_round_a_client_has_no_state(states: States[State]) -> None:
    assert states.get("a", 0) is None
    states.put("a", 1, state(1))
    assert states.get("a", 0) is None  # the reply of round 1 did not count


def test_each_version_is_kept_apart(states: States[State]) -> None:
    states.put("a", 1, state(1))
    states.put("a", 2, state(2))
    states.put("b", 2, state(3))

    assert same(states.get("a", 1), state(1))
    assert same(states.get("a", 2), state(2))
    assert same(states.get("b", 2), state(3))


def test_a_version_lasts_while_later_replies_are_lost(states: States[State]) -> None:
    states.put("a", 1, state(1))
    for round_ in (2, 3, 7, 8, 20):  # every reply from here on is refused: the server keeps naming version 1
        assert same(states.get("a", 1), state(1))
        states.put("a", round_, state(round_))

    assert same(states.get("a", 1), state(1))


def test_a_task_that_runs_twice_replaces_its_own_result(states: States[State]) -> None:
    for value in (1, 1, 2):
        states.put("a", 4, state(value))

    assert same(states.get("a", 4), state(2))


def test_what_no_message_can_ask_for_is_forgotten(tmp_path: Path) -> None:
    memory: MemoryStates[State] = MemoryStates()
    folder = FolderStates(tmp_path)
    for states in (memory, folder):
        for version in (1, 2, 3):
            states.put("a", version, state(version))
            states.put("ab", version, state(version))
        states.get("a", 3)

        assert same(states.get("a", 3), state(3))
        assert same(states.get("ab", 1), state(1))
        with pytest.raises((KeyError, FileNotFoundError)):
            states.get("a", 2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("a.")) == ["a.3.safetensors"]


def test_a_version_that_never_was_is_an_error_not_a_fresh_start(states: States[State]) -> None:
    states.put("a", 1, state(1))

    with pytest.raises((KeyError, FileNotFoundError)):
        states.get("a", 2)


# --- on disk


def test_states_outlive_the_process(tmp_path: Path) -> None:
    FolderStates(tmp_path / "deep" / "states").put("a", 1, state(1))

    assert same(FolderStates(tmp_path / "deep" / "states").get("a", 1), state(1))


def test_a_leftover_of_a_crash_is_ignored(tmp_path: Path) -> None:
    states = FolderStates(tmp_path)
    states.put("a", 1, state(1))
    leftover = tmp_path / ".a.2.safetensors.123.tmp"
    leftover.write_bytes(to_bytes(state(2))[:50])

    assert same(states.get("a", 1), state(1))
    (other := tmp_path / ".ab.2.safetensors.123.tmp").write_bytes(b"half")
    states.put("a", 2, state(3))
    assert same(states.get("a", 2), state(3))
    assert states.get("a", 0) is None
    assert not leftover.exists(), "a store must not grow with every kill"
    assert other.exists(), "another client may be at it"


@pytest.mark.parametrize("name", ["a.old.safetensors", "a.1.old.safetensors", "a..safetensors", "a.safetensors"])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, name: str) -> None:
    states = FolderStates(tmp_path)
    for version in (1, 2):
        states.put("a", version, state(version))
    (tmp_path / name).write_bytes(b"mine")

    assert same(states.get("a", 2), state(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.2.safetensors", name])


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_content(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def crash(*arguments: object) -> None:
        raise KeyboardInterrupt

    if step == "write":
        monkeypatch.setattr(Path, "open", crash)
    else:
        monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[step], crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new and longer")
    monkeypatch.undo()

    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_content_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bytes, bool]] = []
    path = tmp_path / "a"

    def fsync(descriptor: int) -> None:
        (file,) = tmp_path.iterdir()
        of_folder = os.fstat(descriptor).st_ino == tmp_path.stat().st_ino
        assert of_folder or os.fstat(descriptor).st_ino == file.stat().st_ino
        seen.append((of_folder, file.read_bytes(), path.exists()))

    monkeypatch.setattr(state_module.os, "fsync", fsync)
    write_atomically(path, b"content")

    assert seen == [(False, b"content", False), (True, b"content", True)]  # the content, then its name
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_damaged_state_is_an_error_not_a_fresh_start(tmp_path: Path, damage: str) -> None:
    states = FolderStates(tmp_path)
    states.put("a", 1, state(1))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-1], "empty": b"", "garbage": b"\x80\x04K\x01."}[damage])

    with pytest.raises(Exception, match=r"(?i)header|length|buffer|incomplete|invalid"):
        states.get("a", 1)


TENSORS = {
    "half": torch.randn(3).half(),
    "brain": torch.randn(3).bfloat16(),
    "double": torch.randn(2, 2).double(),
    "whole": torch.tensor(3),
    "truth": torch.tensor([True, False]),
    "none": torch.empty(0, 4),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "learned": torch.ones(2, requires_grad=True),
}


def test_every_tensor_that_a_strategy_may_keep_comes_back() -> None:
    found = from_bytes(to_bytes(TENSORS))

    assert same(found, {name: tensor.detach() for name, tensor in TENSORS.items()})


def test_tensors_that_share_memory_come_back() -> None:
    whole = torch.arange(6.0)
    shared = {"whole": whole, "again": whole, "first": whole[:3], "second": whole[3:]}

    assert same(from_bytes(to_bytes(shared)), shared)


# --- flat form


def test_models_and_tensors_come_apart_again() -> None:
    models = {
        "student": Model(SPEC, {"w": torch.ones(1), "deep/er": torch.zeros(2)}),
        "student2": Model(SPEC, {"w": torch.ones(3)}),
    }
    others = {"means": torch.ones(4), "model/student/w": torch.zeros(5)}  # a name that looks like a model's

    flat = flatten(models, others)

    assert same(model_tensors(flat, "student"), dict(models["student"].tensors))
    assert same(model_tensors(flat, "student2"), dict(models["student2"].tensors))
    assert same(other_tensors(flat), others)


# --- digest

BASE: dict[str, Tensor] = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3, 4]])}


def test_the_digest_is_the_sha_256_of_names_types_shapes_and_contents() -> None:
    half = torch.tensor([[1.0], [-2.0]], dtype=torch.bfloat16)  # the upper half of a float32's bits
    content = b"a torch.float32 (2,)\n" + struct.pack("<2f", 1, 2)
    content += b"b torch.int64 (1, 2)\n" + struct.pack("<2q", 3, 4)
    content += b"c torch.bfloat16 (2, 1)\n" + b"".join(struct.pack("<f", value)[2:] for value in (1, -2))

    assert digest({"c": half, **BASE}, "then") == hashlib.sha256(content + b"text then\n").hexdigest()


def test_the_digest_does_not_depend_on_order() -> None:
    many = {f"name-{k}": torch.tensor(k) for k in range(20)}
    names = list(many)
    found = set()
    for k in range(10):
        random.Random(k).shuffle(names)  # noqa: S311 - an order, no secret
        found.add(digest({name: many[name] for name in names}))
    assert len(found) == 1


def test_the_digest_does_not_depend_on_the_layout_in_memory() -> None:
    square = torch.arange(6.0).reshape(2, 3)

    assert digest({"x": square.T}) == digest({"x": square.T.contiguous()})
    assert digest({"x": torch.ones(2, requires_grad=True)}) == digest({"x": torch.ones(2)})


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"c": BASE["a"], "b": BASE["b"]}, id="name"),
        pytest.param({"a": BASE["b"], "b": BASE["a"]}, id="exchanged"),
        pytest.param({"a": BASE["a"].double(), "b": BASE["b"]}, id="type"),
        pytest.param({"a": BASE["a"].view(torch.int32), "b": BASE["b"]}, id="type, same bytes"),
        pytest.param({"a": BASE["a"][:, None], "b": BASE["b"]}, id="shape, same bytes"),
        pytest.param({"a": BASE["a"], "b": BASE["b"].reshape(2)}, id="rank, same bytes"),
        pytest.param({"a": torch.tensor([1.0, 2.0000002]), "b": BASE["b"]}, id="last bit"),
        pytest.param({"a": torch.tensor([2.0, 1.0]), "b": BASE["b"]}, id="order of the content"),
        pytest.param({"a": BASE["a"]}, id="one less"),
        pytest.param({**BASE, "c": torch.empty(0)}, id="one more, empty"),
        pytest.param({}, id="nothing"),
    ],
)
def test_the_digest_sees_every_difference(other: dict[str, Tensor]) -> None:
    assert digest(other) != digest(BASE)


def test_the_digest_sees_the_sign_of_zero_and_the_bits_of_bfloat16() -> None:
    assert digest({"x": torch.tensor(0.0)}) != digest({"x": torch.tensor(-0.0)})
    ones = torch.ones(2, dtype=torch.bfloat16)
    assert digest({"x": ones}) == digest({"x": ones.clone()})
    assert digest({"x": ones}) != digest({"x": ones.half()})
    assert digest({"x": ones}) != digest({"x": ones * 2})


def test_the_digest_sees_parts_and_texts() -> None:
    one, two = {"a": BASE["a"]}, {"b": BASE["b"]}
    different = [
        digest(one, two),
        digest(two, one),
        digest(one, "text"),
        digest("text", one),
        digest("te", "xt"),
        digest("text"),
        digest(),
    ]
    assert len(set(different)) == len(different)
