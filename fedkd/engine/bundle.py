"""Run an experiment on Flower's own simulation, as an app that holds the experiment and the user's strategies."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

import fedkd
from fedkd.app.history import RoundRecord
from fedkd.app.run_folder import CLIENTS, FLOWER_LOG, ROUNDS, SUMMARY, claim, read_lines, read_models
from fedkd.config import Experiment
from fedkd.data import sources
from fedkd.engine.flower import run_app
from fedkd.engine.result import Result, make_result
from fedkd.errors import RunError
from fedkd.strategy.registry import PACKAGE

APP = """\
from fedkd.app.flower import make_client_app, make_server_app

server_app = make_server_app()
client_app = make_client_app()
"""


def run_on_flower(experiment: Experiment, out: Path | None, on_round: Callable[[RoundRecord], None]) -> Result:
    """Run an experiment on Flower's simulation.

    Args:
        experiment: what to run.
        out: folder for the results; nothing is kept if absent.
        on_round: called after every round with its record.

    Raises:
        RunError: the run did not complete.
    """
    with _folder(out) as folder, tempfile.TemporaryDirectory(prefix="fedkd-app-") as app:
        claim(folder)
        write_app(Path(app), experiment, folder)
        progress = _Progress(folder / ROUNDS, on_round)
        run_app(
            Path(app),
            supernodes=experiment.federation.clients,
            log=folder / FLOWER_LOG,
            concurrent_clients=max(1, experiment.engine.workers),
            on_poll=progress.report,
        )
        progress.report()
        if not (folder / SUMMARY).exists():  # Flower calls a server that ended early "completed"
            raise RunError(f"the Flower run ended without a result; its log is {folder / FLOWER_LOG}.")
        shutil.rmtree(folder / "states", ignore_errors=True)
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        server, clients = read_models(folder)
        rounds, measured = (read_lines(folder / name) for name in (ROUNDS, CLIENTS))
        return make_result(summary, rounds, measured, server, clients, out)


def write_app(app: Path, experiment: Experiment, out: Path) -> None:
    """Write a Flower app that runs an experiment on this machine; fedkd itself comes from the environment.

    Args:
        app: an empty folder.
        experiment: what the app runs.
        out: run folder, where server and clients leave their results.
    """
    write_app_elsewhere(app, with_absolute_paths(experiment), str(out.resolve()))


def write_app_elsewhere(app: Path, experiment: Experiment, out: str) -> None:
    """Write a Flower app that runs an experiment on other machines: paths are theirs, and stay as they are.

    Args:
        app: an empty folder.
        experiment: what the app runs.
        out: run folder of the server; a new one in ``runs/`` if empty.
    """
    project = {
        "project": {
            "name": "fedkd-run",
            "version": "0.1.0",
            "description": "One experiment",
            "license": "Apache-2.0",
            "dependencies": [],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedkd",
                    "components": {"serverapp": "app:server_app", "clientapp": "app:client_app"},
                    "config": {"experiment": experiment.to_toml(), "overrides": "", "out": out},
                }
            }
        },
    }
    (app / "pyproject.toml").write_text(tomli_w.dumps(project), encoding="utf-8")
    (app / "app.py").write_text(APP, encoding="utf-8")
    own, builtin = Path.cwd() / PACKAGE, Path(fedkd.__file__).parent.parent / PACKAGE
    if own.is_dir() and not (builtin.is_dir() and own.samefile(builtin)):
        shutil.copytree(own, app / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """Return the experiment for processes in another working directory: its data are named by absolute paths."""
    name, root = experiment.data.name, experiment.data.root
    if name not in sources.names():
        return experiment.changed(**{"data.name": str(Path(name).expanduser().resolve())})
    folder = sources.default_folder(name)
    here = folder.is_dir() or experiment.data.download
    if root is None and here and not os.environ.get(sources.DATA_VARIABLE):
        root = str(folder)
    return experiment if root is None else experiment.changed(**{"data.root": str(Path(root).resolve())})


class _Progress:
    """Tells of the rounds that a run folder shows finished, each once."""

    def __init__(self, path: Path, on_round: Callable[[RoundRecord], None]) -> None:
        self._path = path
        self._on_round = on_round
        self._told = 0

    def report(self) -> None:
        for record in read_lines(self._path)[self._told :]:
            self._told += 1
            self._on_round(RoundRecord(**record))


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    temporary = Path(tempfile.mkdtemp(prefix="fedkd-run-"))
    try:
        yield temporary
    except RunError:  # names the log, which is all that stays
        for path in temporary.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != FLOWER_LOG:
                path.unlink()
        raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(temporary, ignore_errors=True)
