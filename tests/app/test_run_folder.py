"""The run folder: complete enough to run again, never a mixture of two runs, and never on top of someone's files."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedkd
from fedkd import config
from fedkd.app.history import RoundRecord
from fedkd.app.run_folder import RunFolder, experiment_digest, locked, manifest, new_folder, read_lines, read_models
from fedkd.config import Experiment
from fedkd.data.federation import build
from fedkd.engine.simulate import simulate
from fedkd.errors import UserError
from fedkd.learner.model_file import load_model
from fedkd.strategy.registry import complete, find

SMALL: Mapping[str, Any] = {
    "name": "small-run.1",
    "rounds": 2,
    "seed": 3,
    "data": {"public": 40, "validation": 1300, "test": 40},
    "federation": {"clients": 3, "architectures": ("mlp", "mlp-deep"), "feature_width": 8},
    "train": {"local_epochs": 1, "lr": 0.0123},
    "strategies": {"feddf": {"distil_epochs": 1}, "fedmd": {"transfer_epochs": 1}},
}
FEDDF = Experiment(strategy="feddf", **SMALL)
FEDMD = Experiment(strategy="fedmd", **SMALL)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def generations(*rounds: int) -> set[str]:
    names = ("manifest.json", "run.json", "server.safetensors", *(f"clients/client-{k}.safetensors" for k in range(3)))
    return {f"round-{number:05d}/{name}" for number in rounds for name in names}


def a_round(number: int) -> RoundRecord:
    return RoundRecord(number, 0.0, {"a": 1}, {}, {}, {}, "digest")


def test_a_run_leaves_all_that_it_was_and_found(tmp_path: Path) -> None:
    result = simulate(FEDDF, out=tmp_path / "deep" / "run")

    folder = tmp_path / "deep" / "run"
    clients, cohorts = ("client-0", "client-1", "client-2"), ("mlp+image", "mlp-deep+image")
    assert files(folder) == {
        "experiment.toml",
        "manifest.json",
        "rounds.jsonl",
        "clients.jsonl",
        "summary.json",
        *(f"checkpoints/{name}" for name in generations(1, 2)),
        *(f"models/clients/{key}/student.safetensors" for key in clients),
        *(f"models/server/{name}.safetensors" for name in cohorts),
    }
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8")) == result.summary
    assert read_lines(folder / "rounds.jsonl") == list(result.rounds)
    assert read_lines(folder / "clients.jsonl") == list(result.clients)
    assert [row["round"] for row in result.rounds] == [1, 2]
    assert [row["client"] for row in result.clients] == list(clients)
    inputs = build(FEDDF).test("image").inputs
    with torch.no_grad():
        for key in clients:
            again = load_model(folder / "models" / "clients" / key / "student.safetensors")
            assert torch.equal(again(inputs), result.client_models[key]["student"](inputs))


def test_the_experiment_file_of_a_run_runs_the_same_again(tmp_path: Path) -> None:
    first = simulate(FEDMD, out=tmp_path / "first")

    again = config.load(tmp_path / "first" / "experiment.toml")
    second = simulate(again, out=tmp_path / "second")

    assert again == complete(FEDMD)
    assert second.digest == first.digest
    assert [row["digest"] for row in second.rounds] == [row["digest"] for row in first.rounds]
    for name in ("experiment.toml", "manifest.json", "clients.jsonl"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert simulate(again.changed(seed=4)).digest != first.digest


def test_every_default_is_written_out(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", FEDMD)

    text = (tmp_path / "run" / "experiment.toml").read_text(encoding="utf-8")

    for key in ("alpha = 0.5", "optimizer =", "lr = 0.0123", "threads = 1", "evaluate_every = 1"):
        assert key in text
    settings = find("fedmd").Settings(transfer_epochs=1)
    written = config.loads(text).strategies
    assert written == {"feddf": {"distil_epochs": 1}, "fedmd": settings.model_dump()}


def test_a_default_counts_as_much_as_the_same_number_given() -> None:
    default = find("fedmd").Settings().digest_epochs
    digests = [
        experiment_digest(FEDMD.changed(**{"strategies.fedmd.digest_epochs": epochs}))
        for epochs in (default, default + 1)
    ]
    assert digests[0] == experiment_digest(FEDMD) != digests[1]


def test_an_earlier_run_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    simulate(FEDDF, out=folder)
    before = {name: (folder / name).read_bytes() for name in files(folder)}

    with pytest.raises(UserError, match=r"run: expected a new or empty folder, found an earlier run; choose another"):
        simulate(FEDMD, out=folder)

    assert {name: (folder / name).read_bytes() for name in files(folder)} == before


def test_the_first_free_name_is_taken_and_an_empty_folder_is_gone_afterwards(tmp_path: Path) -> None:
    with new_folder(tmp_path / "runs" / "run") as first, new_folder(tmp_path / "runs" / "run") as second:
        (tmp_path / "runs" / "run-3").write_text("a file", encoding="utf-8")
        with new_folder(tmp_path / "runs" / "run") as fourth:
            assert [path.name for path in (first, second, fourth)] == ["run", "run-2", "run-4"]
        (second / "kept").touch()
    assert files(tmp_path) == {"runs/run-2/kept", "runs/run-3"}
    assert not first.exists()
    with new_folder(tmp_path / "others" / "run"):
        pass
    assert not (tmp_path / "others").exists()


def test_a_run_that_was_cut_off_keeps_its_finished_rounds_and_is_not_complete(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def interrupt(record: RoundRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(FEDMD, out=folder, on_round=interrupt)

    assert files(folder) == {
        *("experiment.toml", "manifest.json", "rounds.jsonl"),
        *(f"checkpoints/{name}" for name in generations(1)),
    }
    assert [row["round"] for row in read_lines(folder / "rounds.jsonl")] == [1]
    assert config.load(folder / "experiment.toml") == complete(FEDMD)


def test_a_line_that_was_cut_off_is_not_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", FEDMD)
    for number in (1, 2):
        folder.add_round(a_round(number))
    path = tmp_path / "run" / "rounds.jsonl"
    content = path.read_bytes()

    for cut in range(1, len(content) // 2):
        path.write_bytes(content[:-cut])
        assert [row["round"] for row in read_lines(path)] == [1]

    assert read_lines(tmp_path / "nothing.jsonl") == []


def test_a_folder_that_is_opened_again_keeps_its_rounds_byte_for_byte(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", FEDMD)
    for number in (1, 2, 3):
        folder.add_round(a_round(number))
    path = tmp_path / "run" / "rounds.jsonl"
    content = path.read_bytes()
    (tmp_path / "run" / "models").mkdir()
    for half in (".rounds.jsonl.12.tmp", "models/.student.safetensors.3.tmp"):
        (tmp_path / "run" / half).touch()

    RunFolder.reopen(tmp_path / "run", 2).add_round(a_round(3))

    assert path.read_bytes() == content
    assert files(tmp_path / "run") == {"experiment.toml", "manifest.json", "rounds.jsonl"}
    path.write_bytes(content + content[:20])
    RunFolder.reopen(tmp_path / "run", 3)
    assert path.read_bytes() == content


def test_one_process_at_a_time_works_on_a_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with locked(tmp_path), locked(tmp_path / "other"):
        with pytest.raises(UserError, match="expected a run that nobody else works on"), locked(tmp_path):
            pass
        assert os.listdir(tmp_path) == ["other"]
    with locked(tmp_path):
        pass


# --- refusals


@pytest.mark.parametrize("name", ["thesis.tex", ".hidden", "rounds.jsonl"])
def test_a_folder_with_other_files_is_refused_and_stays_as_it_is(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mine"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "precious.bin").write_bytes(b"1")
    (folder / name).write_text("mine", encoding="utf-8")

    with pytest.raises(UserError, match=r"mine: expected a new or empty folder, found .*; choose another"):
        simulate(FEDMD, out=folder)

    assert files(folder) == {name, "models/precious.bin"}
    assert (folder / name).read_text(encoding="utf-8") == "mine"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    RunFolder(tmp_path / "empty", FEDMD)

    assert files(tmp_path / "empty") == {"experiment.toml", "manifest.json"}


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_path_that_is_a_file_is_refused(tmp_path: Path, below: str) -> None:
    path = tmp_path / "file"
    path.write_text("mine", encoding="utf-8")

    with pytest.raises(UserError, match="expected a folder that can be made, but: "):
        RunFolder(path / below if below else path, FEDMD)

    assert path.read_text(encoding="utf-8") == "mine"


def test_a_folder_into_which_nothing_can_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedkd.app.run_folder.os.access", lambda path, mode: False)  # the super-user may always

    with pytest.raises(UserError, match=r"but: .*nothing can be written into it.*; choose another one"):
        RunFolder(tmp_path, FEDMD)


def test_an_experiment_that_cannot_run_leaves_no_folder(tmp_path: Path) -> None:
    for wrong in ({"strategy": "fedmb"}, {"data.public": 0}, {"strategy": "public_only"}, {"federation.views": ("x",)}):
        with pytest.raises(UserError):
            simulate(FEDMD.changed(**wrong), out=tmp_path / "run")

    assert not (tmp_path / "run").exists()


# --- manifest


def test_the_manifest_names_what_the_bits_depend_on() -> None:
    found = manifest(FEDMD)

    federation = build(FEDMD)
    sha = hashlib.sha256(repr(federation.classes).encode())
    sha.update(federation.splits.public.numpy().tobytes())
    for name in sorted(federation.dataset.views):
        sha.update(name.encode() + federation.dataset.views[name][federation.splits.public].numpy().tobytes())
    assert found["public_set"] == sha.hexdigest()
    assert found["data"] == federation.dataset.digest
    assert found["samples"] == {"train": 1797 - 40 - 1300 - 40, "public": 40, "validation": 1300, "test": 40}
    assert (found["seed"], found["threads"], found["plan"]) == (3, 1, "one-by-one")
    assert (found["engine"], found["workers"]) == ("local", 0)
    assert found["fedkd"] == fedkd.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert (
        found["versions"]["torch"] == torch.__version__.split("+")[0] or torch.__version__ == found["versions"]["torch"]
    )
    assert all(found["versions"].values())
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 4}, "seed"),
        ({"engine.threads": 2}, "threads"),
        ({"engine.plan": "cohorts"}, "plan"),
        ({"strategy": "fedavg", "federation.architectures": ("mlp",)}, "code"),
        ({"data.public": 41}, "public_set"),
    ],
)
def test_the_manifest_shows_a_change(change: Mapping[str, object], key: str) -> None:
    assert manifest(FEDMD.changed(**change))[key] != manifest(FEDMD)[key]


# --- models


def test_models_are_read_back_by_party_and_name(tmp_path: Path) -> None:
    result = simulate(FEDDF, out=tmp_path / "run")

    server, clients = read_models(tmp_path / "run")

    assert set(server) == {"mlp+image", "mlp-deep+image"}
    assert {key: set(models) for key, models in clients.items()} == {f"client-{k}": {"student"} for k in range(3)}
    for name, model in server.items():
        expected = result.server_models[name].state_dict()
        assert model.tensors.keys() == expected.keys()
        assert all(torch.equal(model.tensors[key], tensor) for key, tensor in expected.items())
    assert read_models(tmp_path) == ({}, {})


def test_nothing_temporary_is_left(tmp_path: Path) -> None:
    simulate(FEDDF, out=tmp_path / "run")

    assert not [name for name in files(tmp_path / "run") if name.endswith(".tmp")]
    assert os.listdir(tmp_path) == ["run"]
