"""What cannot be gone on with is refused before anything is changed."""

import json
from pathlib import Path

import pytest

from fedkd import config
from fedkd.app import going_on as module
from fedkd.app.history import RoundRecord
from fedkd.app.run_folder import locked, read_lines
from fedkd.config import Experiment
from fedkd.engine.resume import CutOff, go_on, opened, read_cut_off, resume
from fedkd.engine.simulate import simulate
from fedkd.errors import RunError, UserError
from tests.engine.cutting import SMALL, cut_off, left


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return cut_off(Experiment(strategy="fedmd", **{**SMALL, "rounds": 2}), tmp_path / "run", 1)


def test_a_complete_run_or_no_run_is_refused(tmp_path: Path, folder: Path) -> None:
    for nothing in (tmp_path, tmp_path / "missing", folder / "manifest.json"):
        with pytest.raises(UserError, match=r"expected the folder of a run, found no experiment.toml in it"):
            resume(nothing)
    resume(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"run: expected a run that was cut off, found a complete one"):
        resume(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("missing", [None, "manifest.json"])
@pytest.mark.parametrize("log", [False, True])
def test_a_run_of_a_deployment_is_gone_on_with_by_the_command_that_began_it(
    folder: Path, log: bool, missing: str | None
) -> None:
    own = config.load(folder / "experiment.toml").changed(**{"federation.partition": "own"})
    (folder / "experiment.toml").write_text(own.to_toml(), encoding="utf-8")
    if log:  # the operator's command writes it, the server does not
        (folder / "flower.log").touch()
    if missing:
        (folder / missing).unlink()
    command = "go on with: fedkd deploy run EXPERIMENT --superlink HOST:PORT --root-certificates ca.crt --server-out"

    with pytest.raises(UserError) as refused:
        resume(folder)

    assert f"{command} {'FOLDER, the same as before.' if log else folder}" in str(refused.value)
    assert ("found the operator's folder of a deployment" in str(refused.value)) == log


def test_a_run_without_checkpoint_is_refused(tmp_path: Path) -> None:
    experiment = Experiment(strategy="fedmd", **SMALL, engine={"checkpoint_every": 0})
    folder = cut_off(experiment, tmp_path / "run", 2)

    assert not (folder / "checkpoints").exists()
    with pytest.raises(
        UserError, match=r"expected a checkpoint to go on from, found none; start again with: fedkd run"
    ):
        resume(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("code", "f" * 64),
        ("data", "f" * 64),
        ("public_set", "f" * 64),
        ("cpu_capability", "AVX9"),
        ("versions", {"torch": "1.0", "numpy": None}),
    ],
)
def test_what_decides_the_bits_must_be_as_it_was(folder: Path, key: str, value: object) -> None:
    path = folder / "manifest.json"
    values = {**json.loads(path.read_text(encoding="utf-8")), key: value}
    path.write_text(json.dumps(values), encoding="utf-8")

    with pytest.raises(UserError, match=rf"manifest.json: {key}[.a-z ()]*: expected what the run began with, .*found"):
        resume(folder)

    path.write_text(json.dumps({**values, "public_set": 0, key: value}), encoding="utf-8")
    named = min(key, "public_set", key=[k.split(".")[0] for k in module.DECISIVE].index)
    with pytest.raises(UserError, match=rf"manifest.json: {named}"):  # the first that differs
        resume(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "{}"])
def test_a_damaged_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="utf-8")

    with pytest.raises(UserError, match=r"manifest.json: .*start the run again"):
        resume(folder)


CHANGES = ["rounds = 3", "seed = 7", "lr = 0.5", 'plan = "cohorts"', "evaluate_every = 0", 'strategy = "local"']


@pytest.mark.parametrize("change", CHANGES)
def test_a_setting_that_was_edited_is_named(folder: Path, change: str) -> None:
    path, key = folder / "experiment.toml", change.partition(" = ")[0]
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = [change if line.startswith(f"{key} = ") else line for line in lines]
    assert changed != lines
    path.write_text("\n".join(changed), encoding="utf-8")

    with pytest.raises(UserError, match=rf"experiment.toml: [a-z.]*{key}: expected what the run began with, .*found"):
        resume(folder)


def test_a_setting_that_was_added_is_refused(folder: Path) -> None:
    path = folder / "experiment.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("[federation.missing]\n", "[federation.missing]\nimage = 0.5\n"), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != text

    with pytest.raises(UserError, match=r"experiment.toml: .*expected .*that the run began with|began with, {}"):
        resume(folder)


@pytest.mark.parametrize("change", ["seed=7", "federation.partition=own", "engine.name=flower", "strategy=local"])
def test_a_setting_that_is_given_and_decides_is_named(folder: Path, change: str) -> None:
    key = change.partition("=")[0]
    with (
        pytest.raises(UserError, match=rf"experiment.toml: {key}: expected what the run began with, .*; set it so, or"),
        opened(folder, [change]),
    ):
        pass


def test_where_it_runs_may_change(folder: Path) -> None:
    path = folder / "experiment.toml"
    text = path.read_text(encoding="utf-8").replace("timeout = 3600.0", "timeout = 60.0")
    path.write_text(text.replace("checkpoint_every = 1", "checkpoint_every = 7"), encoding="utf-8")

    assert read_cut_off(folder, {"engine.workers": 2}).experiment.engine.workers == 2
    with pytest.raises(UserError, match=r"engine\.workers"):
        read_cut_off(folder, {"engine.workers": -1})
    assert resume(folder).summary["rounds"] == 2


def test_a_run_on_flower_is_refused(folder: Path) -> None:
    path = folder / "experiment.toml"
    path.write_text(path.read_text(encoding="utf-8").replace('name = "local"', 'name = "flower"'), encoding="utf-8")

    with pytest.raises(UserError, match=r"run: expected a run on our own engine, found one on Flower's"):
        resume(folder)


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff\n", b'{"round": 1}\n', b"[1]\n"])
def test_records_that_do_not_lead_to_the_checkpoint_are_refused(folder: Path, content: bytes) -> None:
    (folder / "rounds.jsonl").write_bytes(content)

    with pytest.raises(UserError, match=r"rounds.jsonl: expected .*start the run again"):
        resume(folder)


def test_what_comes_after_the_checkpoint_is_done_again_whatever_it_is(folder: Path) -> None:
    with (folder / "rounds.jsonl").open("ab") as file:
        file.write(b"garbage\n\xff")
    assert len(read_lines(folder / "rounds.jsonl", 1)) == 1
    with pytest.raises(ValueError, match="line 2 is none"):
        read_lines(folder / "rounds.jsonl")
    assert resume(folder).summary["rounds"] == 2
    assert [line["round"] for line in read_lines(folder / "rounds.jsonl")] == [1, 2]


def test_a_run_that_is_still_running_is_left_alone(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with locked(folder), pytest.raises(UserError, match=r"run: expected a run that nobody else works on"):
        resume(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    def again(record: RoundRecord) -> None:
        resume(folder)

    with pytest.raises(UserError, match="nobody else works on"):
        resume(folder, on_round=again)
    assert read_cut_off(folder).records[-1].round == 2


def test_nobody_goes_on_with_what_another_has_begun_to_read(folder: Path) -> None:
    with opened(folder) as run:
        with pytest.raises(UserError, match="nobody else works on"):
            resume(folder)
        assert isinstance(run, CutOff)
        assert run.checkpoint.states
        assert go_on(run).summary["rounds"] == 2
        assert run.checkpoint.states == {}, "only the grid keeps the clients' states"


def test_a_folder_that_somebody_has_begun_to_use_is_left_alone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    out.mkdir()
    with locked(out), pytest.raises(UserError, match="new: expected a run that nobody else works on"):
        simulate(read_cut_off(folder).experiment, out=out)
    assert list(out.iterdir()) == []


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment(strategy="fedmd", **SMALL)
    simulate(experiment, out=tmp_path / "whole")
    folder, real = tmp_path / "cut", Path.rename

    def full(self: Path, target: Path) -> Path:
        if target.name == "round-00003":
            raise OSError(28, "No space left on device")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(RunError, match="No space left on device"):
            simulate(experiment, out=folder)
    assert len(read_lines(folder / "rounds.jsonl")) == 3

    resume(folder)

    assert left(folder) == left(tmp_path / "whole")
