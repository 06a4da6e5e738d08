"""Checkpoints: what is read is what was written; damage is found out, and the generation before is still there."""

import errno
import json
import logging
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedkd.app import checkpoint
from fedkd.app.checkpoint import Checkpoint, Checkpoints, Snapshot, client_file, read_newest
from fedkd.app.history import ClientRecord, RoundRecord
from fedkd.app.loop import run
from fedkd.app.state import State, digest
from fedkd.config import Experiment
from fedkd.engine.local import LocalGrid
from fedkd.errors import RunError, UserError
from fedkd.knowledge import Bundle, Generator, Knowledge, Prototypes, SoftLabels

SMALL: Mapping[str, Any] = {
    "rounds": 1,
    "data": {"public": 40, "validation": 1300, "test": 40},
    "federation": {"clients": 3, "architectures": ("linear",), "feature_width": 2},
    "train": {"local_epochs": 1},
    "engine": {"plan": "cohorts"},
    "strategies": {"feddf": {"distil_epochs": 1}},
}
KEYS = ("client-0", "client-1", "client-2")
COMMON = Bundle(
    {
        "late": SoftLabels(torch.arange(4), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))),
        "early": Prototypes(torch.ones(3, 2), torch.tensor([1, 0, 2])),
        "generator": Generator({"z/weight": torch.zeros(2), "a": torch.full((), 0.5)}),
    }
)


@pytest.fixture(scope="module")
def first() -> Snapshot:
    """Return a real run's snapshot after its first round."""
    taken: list[Snapshot] = []
    experiment = Experiment(strategy="feddf", **SMALL)
    run(LocalGrid(experiment), experiment, on_snapshot=taken.append)
    return taken[0]


def state_of(key: str, version: int) -> State:
    """Return a state of the types that a strategy may keep."""
    number = KEYS.index(key) + 10 * version
    return {
        "state/turned": torch.arange(6.0).reshape(2, 3).T + number,
        "state/brain": torch.full((2,), number, dtype=torch.bfloat16),
        "state/none": torch.empty(0, dtype=torch.int64),
        "model/student/on": torch.tensor([True, False]),
    }


def after(first: Snapshot, round_: int, versions: Mapping[str, int] | None = None, **changes: Any) -> Snapshot:
    versions = dict.fromkeys(KEYS, round_) if versions is None else versions
    return replace(first, record=replace(first.record, round=round_), versions=versions, **changes)


def written(folder: Path, first: Snapshot, rounds: int, *, versions: Mapping[str, int] | None = None) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for round_ in range(1, rounds + 1):
        checkpoints.save(after(first, round_, versions), state_of)
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_equal(found: Checkpoint, expected: Snapshot) -> None:
    """Compare everything, the order of all names included: a strategy may depend on it."""
    snapshot = found.snapshot
    assert snapshot.record.to_json() == expected.record.to_json()
    assert [client.to_json() for client in snapshot.clients] == [client.to_json() for client in expected.clients]
    assert snapshot.versions == expected.versions
    assert snapshot.state_digests == expected.state_digests
    assert list(snapshot.models) == list(expected.models)
    for name, model in expected.models.items():
        assert snapshot.models[name].spec == model.spec
        assert list(snapshot.models[name].tensors) == list(model.tensors)
        assert digest(snapshot.models[name].tensors) == digest(model.tensors)
    assert list(snapshot.state) == list(expected.state)
    assert digest(snapshot.state) == digest(expected.state)
    assert described(snapshot.common) == described(expected.common)
    assert list(found.states) == list(expected.versions)
    for key, version in expected.versions.items():
        assert digest(found.states[key]) == digest(state_of(key, version))


def described(knowledge: Knowledge | None) -> object:
    return knowledge and (type(knowledge), list(knowledge.to_tensors()), digest(knowledge.to_tensors()))


@pytest.mark.parametrize("common", [None, COMMON, COMMON.parts["late"]])
def test_what_is_read_is_what_was_written(tmp_path: Path, first: Snapshot, common: Knowledge | None) -> None:
    odd = {"z/é": torch.ones(2, dtype=torch.bfloat16), "model/student/x": torch.tensor(3), "a b": torch.empty(0, 3)}
    scores = {"accuracy": 0.1 + 0.2, "nll": 1e-300}
    client = ClientRecord("client-1", "mlp", "image@4", 0, {"image@4": 2}, [0, 2], scores, None)
    snapshot = after(first, 7, state=odd, common=common, clients=[client, *first.clients])

    Checkpoints(tmp_path).save(snapshot, state_of)

    assert first.models
    assert first.clients
    assert_equal(read_newest(tmp_path), snapshot)


def test_a_server_without_anything_can_be_written(tmp_path: Path) -> None:
    nothing = Snapshot(RoundRecord(1, 0.5, {}, {}, {}, {}, "d"), [], {}, {}, None, {}, {})

    Checkpoints(tmp_path).save(nothing, state_of)

    assert read_newest(tmp_path) == Checkpoint(nothing, {})


def test_clients_may_keep_their_states_and_the_checkpoint_says_so(tmp_path: Path, first: Snapshot) -> None:
    checkpoints = Checkpoints(tmp_path)
    for round_ in (1, 2, 3):
        checkpoints.save(after(first, round_), None)

    found = read_newest(tmp_path)

    assert found.states is None
    assert found.snapshot.versions == after(first, 3).versions
    assert found.snapshot.state_digests == first.state_digests
    assert not list((tmp_path / "round-00003" / "clients").iterdir())
    assert json.loads((tmp_path / "round-00003" / "run.json").read_text(encoding="utf-8"))["states"] == "nodes"


def test_a_checkpoint_of_an_earlier_fedkd_has_nobody_on_its_roster_and_all_states(
    tmp_path: Path, first: Snapshot
) -> None:
    Checkpoints(tmp_path).save(first, state_of)
    path = next(tmp_path.iterdir())
    values = json.loads((path / "run.json").read_text(encoding="utf-8"))
    assert sorted(values.pop("roster")) == sorted(first.versions)
    assert values.pop("states") == "here"
    (path / "run.json").write_text(json.dumps(values), encoding="utf-8")
    files = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"]
    files["run.json"] = checkpoint._sha256((path / "run.json").read_bytes())
    (path / "manifest.json").write_bytes(checkpoint._manifest(files))

    found = read_newest(tmp_path)

    assert found.snapshot.roster == {}
    assert sorted(found.states or {}) == sorted(first.versions)


@pytest.mark.parametrize(("every", "due"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_when_a_checkpoint_is_due(every: int, due: list[int]) -> None:
    assert [round_ for round_ in range(1, 6) if checkpoint.is_due(round_, every, 5)] == due


def test_two_generations_are_kept_and_nothing_else(tmp_path: Path, first: Snapshot) -> None:
    checkpoints = Checkpoints(tmp_path / "deep" / "checkpoints")
    seen = []
    for round_ in (1, 2, 3, 10, 99_999, 100_000):
        checkpoints.save(after(first, round_), state_of)
        seen.append([int(name.removeprefix("round-")) for name in names(tmp_path / "deep" / "checkpoints")])

    assert [sorted(rounds) for rounds in seen] == [[1], [1, 2], [2, 3], [3, 10], [10, 99_999], [99_999, 100_000]]
    assert read_newest(tmp_path / "deep" / "checkpoints").snapshot.record.round == 100_000


def test_an_older_generation_goes_only_when_the_new_one_is_complete(
    tmp_path: Path, first: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = written(tmp_path, first, 2)
    removed: list[tuple[str, list[str]]] = []
    rmtree = shutil.rmtree

    def watched(path: Path, **options: Any) -> None:
        if path.exists():
            read_newest(tmp_path)
            removed.append((path.name, [name for name in names(tmp_path) if not name.startswith(".")]))
        rmtree(path, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", watched)
    checkpoints.save(after(first, 3), state_of)

    assert removed == [(".round-00001.tmp", ["round-00002", "round-00003"])]


# --- states that did not change


def test_an_unchanged_state_is_written_twice_at_most_and_no_two_generations_share_a_file(
    tmp_path: Path, first: Snapshot
) -> None:
    asked: list[tuple[str, int]] = []
    checkpoints = Checkpoints(tmp_path)
    for round_ in range(1, 8):
        versions = {"client-0": round_, "client-1": 1, "client-2": 1 if round_ < 5 else 5}
        snapshot = after(first, round_, versions)
        checkpoints.save(snapshot, lambda key, version: asked.append((key, version)) or state_of(key, version))  # type: ignore[func-returns-value]
        assert_equal(read_newest(tmp_path), snapshot)
        inodes = [path.stat().st_ino for path in tmp_path.rglob("*.safetensors")]
        assert len(set(inodes)) == len(inodes)

    assert [version for key, version in asked if key == "client-0"] == [1, 2, 3, 4, 5, 6, 7]
    assert [version for key, version in asked if key == "client-1"] == [1, 1]
    assert [version for key, version in asked if key == "client-2"] == [1, 1, 5, 5]


def test_damage_in_an_unchanged_state_leaves_the_other_generation_whole(tmp_path: Path, first: Snapshot) -> None:
    versions = dict.fromkeys(KEYS, 1)
    written(tmp_path, first, 5, versions=versions)
    path = tmp_path / "round-00005" / client_file("client-1")

    with path.open("r+b") as file:  # in place, as a disk would
        file.write(b"x")

    assert_equal(read_newest(tmp_path), after(first, 4, versions))


def test_without_hard_links_a_state_is_written_again(
    tmp_path: Path, first: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    versions = dict.fromkeys(KEYS, 1)
    written(tmp_path, first, 4, versions=versions)

    assert_equal(read_newest(tmp_path), after(first, 4, versions))


# --- damage


def damage_of(path: Path, source: random.Random, cases: int) -> list[bytes | None]:
    """Return other contents of a file: cut, flipped, longer, another's, and None: gone."""
    content = path.read_bytes()
    other = next(p for p in sorted(path.parent.iterdir()) if p != path and p.is_file()).read_bytes()
    found: list[bytes | None] = [None, b"", content[:-1], content + b"\n", b"\0" * len(content), other]
    found += [content[: source.randrange(len(content))] for _ in range(5)]
    for _ in range(cases):
        place, bit = source.randrange(len(content)), 1 << source.randrange(8)
        found.append(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
    return found


def test_all_damage_is_found_and_the_older_generation_is_used(
    tmp_path: Path, first: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    written(tmp_path, first, 3)
    newest, source = tmp_path / "round-00003", random.Random(1)  # noqa: S311 - no secret
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert len(files) == 3 + len(KEYS)
    expected, mutations = after(first, 2), 0
    for path in files:
        content = path.read_bytes()
        for other in damage_of(path, source, 60):
            caplog.clear()
            path.unlink() if other is None else path.write_bytes(other)
            found = read_newest(tmp_path)
            assert found.snapshot.record.round == 2
            [said] = caplog.messages
            name = path.relative_to(newest).as_posix()
            assert f"checkpoint round-00003 ({name}: " in said
            assert said.endswith("is damaged; going on from round-00002")
            path.write_bytes(content)
            mutations += 1
        assert_equal(found, expected)
    assert mutations > 400
    caplog.clear()
    assert_equal(read_newest(tmp_path), after(first, 3))
    assert caplog.messages == []


def test_every_bit_of_a_manifest_counts(tmp_path: Path, first: Snapshot) -> None:
    written(tmp_path, first, 2)
    path = tmp_path / "round-00002" / "manifest.json"
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 3):
        place = bit // 8
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit % 8]) + content[place + 1 :])
        assert read_newest(tmp_path).snapshot.record.round == 1
    path.write_bytes(json.dumps(json.loads(content)).encode())
    assert read_newest(tmp_path).snapshot.record.round == 1
    path.write_bytes(b"[" * 10_000)
    assert read_newest(tmp_path).snapshot.record.round == 1


def test_a_generation_under_another_name_is_not_used(tmp_path: Path, first: Snapshot) -> None:
    written(tmp_path, first, 2)
    (tmp_path / "round-00002").rename(tmp_path / "round-00009")
    (tmp_path / "round-x").mkdir()

    assert read_newest(tmp_path).snapshot.record.round == 1


def test_without_a_whole_generation_there_is_no_way_on(tmp_path: Path, first: Snapshot) -> None:
    folder = tmp_path / "run" / "checkpoints"
    with pytest.raises(UserError, match=r"a checkpoint to go on from, found none; start again with: fedkd run .*toml"):
        read_newest(folder)
    written(folder, first, 2)
    for name in ("round-00001", "round-00002"):
        (folder / name / "run.json").unlink()
    with pytest.raises(UserError, match=r"only damaged ones: round-00002 \(run.json: .*\); round-00001 \(run.json: "):
        read_newest(folder)


# --- writing that fails


@pytest.mark.parametrize("fails_at", range(6))
def test_a_full_disk_leaves_the_generations_before_whole(
    tmp_path: Path, first: Snapshot, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    checkpoints = written(tmp_path, first, 2)
    calls = iter(range(100))
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"round-00003: expected a checkpoint that can be written, .*No space left"):
            checkpoints.save(after(first, 3), state_of)

    assert names(tmp_path) == ["round-00001", "round-00002"]
    assert_equal(read_newest(tmp_path), after(first, 2))
    checkpoints.save(after(first, 3), state_of)
    assert_equal(read_newest(tmp_path), after(first, 3))


def test_going_on_removes_what_came_later_and_what_is_half_written(tmp_path: Path, first: Snapshot) -> None:
    written(tmp_path, first, 4)
    (tmp_path / ".round-00005.123.tmp" / "clients").mkdir(parents=True)
    (tmp_path / ".round-00002.tmp").mkdir()
    (tmp_path / "notes").mkdir()

    checkpoints = Checkpoints(tmp_path, after=3)

    assert names(tmp_path) == ["notes", "round-00003"]
    for round_ in (4, 5):
        checkpoints.save(after(first, round_), state_of)
    assert names(tmp_path) == ["notes", "round-00004", "round-00005"]
