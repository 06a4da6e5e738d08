"""An experiment as a Flower app: it holds all that the run needs, and gives the bits of our own engine."""

import ast
import os
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd import config, simulate
from fedkd.app.client import client_models
from fedkd.app.history import RoundRecord
from fedkd.app.run_folder import RunFolder, read_lines
from fedkd.app.state import FolderStates
from fedkd.config import Experiment
from fedkd.engine import bundle
from fedkd.engine.bundle import run_on_flower, with_absolute_paths, write_app
from fedkd.errors import RunError, UserError
from fedkd.strategy.registry import complete

ROOT = Path(__file__).resolve().parents[2]
SMALL: Mapping[str, Any] = {
    "rounds": 2,
    "data": {"public": 40, "validation": 1300, "test": 40},
    "federation": {"clients": 2, "architectures": ("mlp", "mlp-deep"), "feature_width": 8},
    "train": {"local_epochs": 1},
}

OWN = '''
"""A strategy of a user's own."""

from typing import final

import torch

from fedkd import ensemble, losses
from fedkd.knowledge import SoftLabels
from fedkd.strategy import MethodCard, Strategy


@final
class Own(Strategy):
    card = MethodCard(title="test", authors="-", year=2026, up=SoftLabels, down=SoftLabels)

    def client_setup(self, client):
        client.state = {"brain": torch.ones(2, dtype=torch.bfloat16), "turned": torch.arange(6.0).reshape(2, 3).T}

    def client_round(self, client, received):
        if client.round == FAILS_IN:
            raise LookupError(f"round {client.round} was too much")
        client.state["brain"] *= 2
        if received is not None:
            client.fit(client.public(received), losses.kd, epochs=1)
        client.fit(client.private, losses.cross_entropy)
        return client.predict(client.next_public_subset)

    def server_round(self, server, replies):
        return server.soft_labels(ensemble.mean_logits(torch.stack([reply.knowledge.logits for reply in replies])))
'''


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Path]]:
    """Work in a folder with a user's own strategy, whose clients fail in a round of choice."""
    folder = tmp_path / "work"
    (folder / "strategies" / "__pycache__").mkdir(parents=True)
    (folder / "strategies" / "__pycache__" / "own.pyc").write_bytes(b"x")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)

    def write(fails_in: int) -> Path:
        text = OWN.replace("FAILS_IN", str(fails_in))
        (folder / "strategies" / "own_method.py").write_text(text, encoding="utf-8")
        return folder

    yield write
    sys.modules.pop("strategies.own_method", None)


# --- Flower's own simulation


@pytest.mark.flower
def test_flower_gives_the_bits_of_our_own_engine_and_the_exception_of_the_clients(
    tmp_path: Path, own_folder: Callable[[int], Path]
) -> None:
    """One run for both, because a run takes a third of a minute: in the third round all clients fail."""
    own_folder(3)
    experiment = Experiment(strategy="own_method", **SMALL).changed(rounds=3)
    ours: list[RoundRecord] = []
    theirs: list[RoundRecord] = []

    with pytest.raises(RunError, match="no client sent a usable reply") as local:
        simulate(experiment, on_round=ours.append)
    with pytest.raises(RunError, match="no client sent a usable reply") as caught:
        simulate(
            experiment.changed(**{"engine.name": "flower"}),
            out=tmp_path / "run",
            on_round=theirs.append,
        )

    assert [{**record.to_json(), "seconds": 0} for record in theirs] == [
        {**record.to_json(), "seconds": 0} for record in ours
    ]
    assert [record.round for record in theirs] == [1, 2]
    for said in (str(local.value), str(caught.value)):
        assert "LookupError: round 3 was too much" in said
        assert "own_method.py" in said
    assert "client-0, client-1:" in str(caught.value)
    again = config.load(tmp_path / "run" / "experiment.toml")
    assert again == complete(experiment.changed(**{"engine.name": "flower"}))
    assert read_lines(tmp_path / "run" / "rounds.jsonl") == [record.to_json() for record in theirs]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *("experiment.toml", "flower.log", "manifest.json", "rounds.jsonl", "run-id", "states")
    ]

    two_rounds = experiment.changed(rounds=2)
    expected = simulate(two_rounds)
    run_id = (tmp_path / "run" / "run-id").read_text(encoding="utf-8").strip()
    states = FolderStates(tmp_path / "run" / "states" / run_id)
    models = client_models(two_rounds, {key: states.get(key, 2) for key in expected.client_models})
    for key, named in expected.client_models.items():
        found = models[key]["student"].tensors
        assert all(found[name].equal(tensor) for name, tensor in named["student"].state_dict().items())


# --- the app that is written


def experiment_in(app: Path) -> Experiment:
    project = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    return config.loads(project["tool"]["flwr"]["app"]["config"]["experiment"])


def test_the_app_holds_the_experiment_and_names_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app").mkdir()
    experiment = Experiment(strategy="fedmd", **SMALL, strategies={"fedmd": {"digest_epochs": 3}})

    write_app(tmp_path / "app", experiment, Path("relative"))

    assert experiment_in(tmp_path / "app") == experiment
    project = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text(encoding="utf-8"))
    app = project["tool"]["flwr"]["app"]
    assert app["config"]["out"] == str(tmp_path / "relative")
    assert app["components"] == {"serverapp": "app:server_app", "clientapp": "app:client_app"}
    assert sorted(path.name for path in (tmp_path / "app").iterdir()) == ["app.py", "pyproject.toml"]
    assigned = {
        target.id
        for node in ast.parse((tmp_path / "app" / "app.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert assigned == {"server_app", "client_app"}


def test_the_users_own_strategies_come_along(tmp_path: Path, own_folder: Callable[[int], Path]) -> None:
    own_folder(0)
    (tmp_path / "app").mkdir()

    write_app(tmp_path / "app", Experiment(strategy="own_method", **SMALL), tmp_path / "run")

    copied = [path.relative_to(tmp_path / "app").as_posix() for path in (tmp_path / "app" / "strategies").rglob("*")]
    assert copied == ["strategies/own_method.py"]


def test_the_built_in_strategies_are_not_copied_beside_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)

    write_app(tmp_path, Experiment(strategy="fedmd", **SMALL), tmp_path / "run")

    assert not (tmp_path / "strategies").exists()


# --- data that are named by a relative path


def test_paths_of_data_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    np.savez(tmp_path / "mine.npz", labels=np.arange(4) % 2, x=np.ones((4, 3), dtype=np.float32))
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    (tmp_path / "digits").mkdir()
    base = Experiment(strategy="fedmd", **SMALL)

    def data_of(**changes: object) -> tuple[str, str | None]:
        data = with_absolute_paths(base.changed(**{f"data.{name}": value for name, value in changes.items()})).data
        return data.name, data.root

    assert data_of(name="mine.npz") == (str(tmp_path / "mine.npz"), None)
    assert data_of(name=str(tmp_path / "mine.npz")) == (str(tmp_path / "mine.npz"), None)
    assert data_of() == ("digits", None)
    assert data_of(name="mnist") == ("mnist", str(tmp_path / "data" / "mnist"))
    assert data_of(name="mnist", root="elsewhere") == ("mnist", str(tmp_path / "elsewhere"))
    assert data_of(name="fashion-mnist") == ("fashion-mnist", None)
    assert data_of(name="spoken-digits") == ("spoken-digits", str(tmp_path / "data"))
    assert data_of(name="hapt-12", download=True) == ("hapt-12", str(tmp_path / "data" / "hapt"))
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path / "big"))
    assert data_of(name="mnist") == ("mnist", None)


# --- what is done with Flower's outcome


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Put a function in the place of Flower."""
    return lambda run_app: monkeypatch.setattr(bundle, "run_app", run_app)


def test_a_flower_run_without_a_result_is_an_error(
    tmp_path: Path, flower: Callable[[Callable[..., None]], None]
) -> None:
    flower(lambda app, **options: options["log"].write_text("the log", encoding="utf-8"))

    with pytest.raises(RunError, match=r"ended without a result; its log is .*flower\.log"):
        run_on_flower(Experiment(strategy="local", **SMALL), tmp_path / "run", lambda record: None)


def test_without_a_folder_the_log_of_a_failed_run_stays(flower: Callable[[Callable[..., None]], None]) -> None:
    def fails(app: Path, **options: Any) -> None:
        for name in ("states", "checkpoints", "models"):
            (options["log"].parent / name).mkdir()
        (options["log"].parent / "experiment.toml").touch()
        options["log"].write_text("the log", encoding="utf-8")

    flower(fails)
    with pytest.raises(RunError) as failed:
        run_on_flower(Experiment(strategy="local", **SMALL), None, lambda record: None)

    log = Path(str(failed.value).partition("its log is ")[2].removesuffix("."))
    assert log.read_text(encoding="utf-8") == "the log"
    assert [path.name for path in log.parent.iterdir()] == ["flower.log"]
    shutil.rmtree(log.parent)


def test_flower_is_asked_for_all_clients_and_the_workers_at_a_time(
    tmp_path: Path, flower: Callable[[Callable[..., None]], None]
) -> None:
    seen: dict[str, Any] = {}

    def run_app(app: Path, **options: Any) -> None:
        seen.update(options, app=sorted(os.listdir(app)))
        folder = options["log"].parent
        simulate(experiment_in(app).changed(**{"engine.name": "local", "engine.workers": 0}), out=folder)
        options["on_poll"]()
        options["on_poll"]()

    flower(run_app)
    experiment = Experiment(strategy="local", **SMALL, engine={"name": "flower", "workers": 3})
    told: list[int] = []

    result = run_on_flower(experiment, None, lambda record: told.append(record.round))

    assert (seen["supernodes"], seen["concurrent_clients"]) == (2, 3)
    assert told == [1, 2]
    assert result.folder is None
    assert not seen["log"].parent.exists(), "without a run folder nothing is kept"
    assert result.digest == simulate(Experiment(strategy="local", **SMALL)).digest


def test_a_foreign_folder_is_refused_before_flower_starts(
    tmp_path: Path, flower: Callable[[Callable[..., None]], None]
) -> None:
    (tmp_path / "mine.txt").write_text("x", encoding="utf-8")
    flower(lambda app, **options: pytest.fail("Flower was started"))

    with pytest.raises(UserError, match=r"found mine\.txt"):
        run_on_flower(Experiment(strategy="local", **SMALL), tmp_path, lambda record: None)


def test_progress_tells_each_finished_round_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", Experiment(strategy="local", **SMALL))
    told: list[RoundRecord] = []
    progress = bundle._Progress(tmp_path / "run" / "rounds.jsonl", told.append)
    records = [RoundRecord(number, 0.5, {"a": 1}, {}, {"x": 1}, {}, "d") for number in (1, 2, 3)]

    progress.report()
    for record in records[:2]:
        folder.add_round(record)
    progress.report()
    with (tmp_path / "run" / "rounds.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"round": 3, "sec')
    progress.report()

    assert told == records[:2]
