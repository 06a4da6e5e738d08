"""Flower's two apps: the same server loop and client side as in our own grids, behind Flower's entry points.

The run configuration holds ``experiment`` (path of a file in the bundle, or the TOML text itself), ``overrides``
(``key=value`` texts separated by blanks) and ``out`` (the run folder, where clients on this machine keep their states).
"""

import shlex
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

import fedkd
from fedkd import config
from fedkd.app.client import HELLO, ClientSide, ClientTask, client_models
from fedkd.app.loop import Run, run
from fedkd.app.run_folder import RunFolder, new_folder
from fedkd.app.state import FolderStates, State
from fedkd.app.wire import header_of, number
from fedkd.config import Experiment
from fedkd.errors import UserError

STATES = "states"


def make_server_app() -> ServerApp:
    """Return the ServerApp: it runs the experiment of the run configuration, and leaves a run folder."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        experiment = experiment_of(context.run_config)
        out = str(context.run_config.get("out", ""))
        with nullcontext(Path(out)) if out else new_folder(Path("runs") / experiment.name) as path:
            folder = RunFolder(path, experiment)
            finished = run(grid, experiment, folder.add_round)
            folder.finish(finished, client_models(experiment, _states_here(context, finished)))

    return app


def make_client_app() -> ClientApp:
    """Return the ClientApp: it acts for the client whose turn it is in the experiment's federation."""
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        side = _client_side(experiment_of(context.run_config).model_dump_json())
        key = list(side.federation.holdings)[int(context.node_config["partition-id"])]
        states = FolderStates(_states_folder(context))
        header = header_of(message.content)
        [outcome] = side.handle(
            [ClientTask(message, key, states.get(key, number({"version": 0, **header}, "version")))]
        )
        if outcome.state is not None:
            states.put(key, number(header, "round"), outcome.state)
        return outcome.reply

    app.train()(handle)
    app.evaluate()(handle)
    app.query(HELLO.partition(".")[2])(handle)
    return app


def experiment_of(run_config: Mapping[str, Any]) -> Experiment:
    """Return the experiment that a run configuration names.

    Raises:
        UserError: it names none, or a wrong one.
    """
    text, overrides = str(run_config.get("experiment", "")), shlex.split(str(run_config.get("overrides", "")))
    if not text:
        raise UserError("run config: expected the key 'experiment', a path or the TOML text, found none.")
    if "\n" in text:
        return config.loads(text, overrides)
    bundle = Path(fedkd.__file__).parent.parent
    return config.load(next((p for p in (Path(text), bundle / text) if p.is_file()), Path(text)), overrides)


def _states_here(context: Context, finished: Run) -> dict[str, State | None]:
    """Return the last states of those clients that keep them on this machine; a real client keeps its own."""
    states = FolderStates(_states_folder(context))
    found: dict[str, State | None] = {}
    for key, version in finished.versions.items():
        with suppress(FileNotFoundError):
            found[key] = states.get(key, version)
    return found


def _states_folder(context: Context) -> Path:
    out = str(context.run_config.get("out", ""))
    return Path(out) / STATES if out else Path(tempfile.gettempdir()) / f"fedkd-{context.run_id}" / STATES


@lru_cache(maxsize=1)
def _client_side(text: str) -> ClientSide:
    return ClientSide(Experiment.model_validate_json(text))


server_app = make_server_app()
client_app = make_client_app()
