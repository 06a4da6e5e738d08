"""Flower's two apps: the same server loop and client side as in our own grids, behind Flower's entry points.

The run configuration holds ``experiment`` (path of a file in the bundle, or the TOML text itself), ``overrides``
(``key=value`` texts separated by blanks) and ``out`` (the run folder, where simulated clients keep their states). Where
clients bring their own samples, each node's own configuration says whose it is (:mod:`fedkd.app.node`).
"""

import errno
import logging
import shlex
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

import fedkd
from fedkd import config
from fedkd.app.announce import Announce, announce_end, announcer, nothing_announced
from fedkd.app.checkpoint import Checkpoints, Snapshot, is_due
from fedkd.app.client import HELLO, TRAIN, ClientSide, ClientTask, client_models, failure
from fedkd.app.going_on import Opened, opened
from fedkd.app.history import RoundRecord
from fedkd.app.loop import Run, run
from fedkd.app.node import node_of
from fedkd.app.punctual import ARE_YOU_THERE, Punctual
from fedkd.app.run_folder import CHECKPOINTS, ROUNDS, new_folder, read_lines
from fedkd.app.state import RUN_ID, FolderStates, State
from fedkd.app.told import telling
from fedkd.app.wire import Header, expect_sealed, header_of, number, reason_in
from fedkd.config import Experiment
from fedkd.data.own import KEY, Owner, build_node
from fedkd.errors import UserError
from fedkd.flower_internals import is_simulation
from fedkd.knowledge import KnowledgeError
from fedkd.wording import printable

LOG = logging.getLogger("fedkd")
STATES = "states"


def make_server_app() -> ServerApp:
    """Return the ServerApp: it runs the experiment of the run configuration, and leaves a run folder."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        experiment = experiment_of(context.run_config)
        announce = announcer() if is_own(experiment) else nothing_announced
        out = str(context.run_config.get("out", ""))
        chosen = nullcontext(Path(out)) if out else new_folder(Path("runs") / experiment.name)
        with _log_shown(), telling(announce), chosen as path, opened(path, experiment) as found:
            announce("folder", {"path": str(path.resolve())})
            if found.start:
                announce("kept", {"round": found.start.snapshot.record.round})
            for row in read_lines(path / ROUNDS):  # of an earlier process
                announce("round", row)
            if not found.complete:
                _run_in(found, grid, experiment, context, announce)
            announce_end(announce, path)

    return app


def _run_in(found: Opened, grid: Grid, experiment: Experiment, context: Context, announce: Announce) -> None:
    """Run an experiment from where its folder says to its end, and write a checkpoint whenever one is due."""
    folder, run_id = found.folder, found.folder.run_id
    # Nobody can go on with Flower's simulation as `fedkd run` starts it: its folder is claimed anew, or gone. Where the
    # clients bring their own samples there is no simulation, whatever the file says.
    simulated = experiment.engine.name == "flower" and not is_own(experiment)
    every = 0 if simulated else experiment.engine.checkpoint_every
    start = found.start
    checkpoints = Checkpoints(folder.path / CHECKPOINTS, len(start.records) if start else 0)

    def keep(snapshot: Snapshot) -> bool:
        due = is_due(snapshot.record.round, every, experiment.rounds)
        if due:
            checkpoints.save(snapshot, None)  # the clients keep their states
            announce("kept", {"round": snapshot.record.round})
        return due

    def add_round(record: RoundRecord) -> None:
        folder.add_round(record)
        announce("round", record.to_json())

    carrier = grid if is_simulation(grid) else Punctual(grid)
    finished = run(carrier, experiment, add_round, keep, start, run_id)
    states = {} if is_own(experiment) else _states_here(context, finished, run_id)
    folder.finish(finished, client_models(experiment, states) if states else {})


def make_client_app() -> ClientApp:
    """Return the ClientApp: it acts for the client whose turn it is in the experiment's federation."""
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        try:
            reply = _answer(message, context)
        except (UserError, KnowledgeError) as error:
            reply = failure(message, f"{_name_of(message, context)}{error}")
        except Exception:
            reply = failure(message, traceback.format_exc())
        if reply.has_error():  # the node's owner reads its log, and the server's operator another one
            LOG.error("%s failed: %s", message.metadata.message_type, reason_in(reply))
        return reply

    app.train()(handle)
    app.evaluate()(handle)
    app.query(HELLO.partition(".")[2])(handle)
    app.query(ARE_YOU_THERE.partition(".")[2])(lambda message, context: Message(RecordDict(), reply_to=message))
    return app


class _Printable(logging.Formatter):
    """Lines without what a terminal obeys: our log also holds clients' words, and operators read it in theirs."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line, 2000) for line in super().format(record).splitlines())


@contextmanager
def _log_shown() -> Iterator[None]:
    """Show what our log says, such as who takes part: Flower keeps what a server writes to standard error."""
    log, handler = logging.getLogger("fedkd"), logging.StreamHandler()
    handler.setFormatter(_Printable())
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def is_own(experiment: Experiment) -> bool:
    """Whether the clients bring their own samples."""
    return experiment.federation.partition == "own"


def _answer(message: Message, context: Context) -> Message:
    """Let this node's client do what a message asks for, from its state and into its state."""
    experiment = experiment_of(context.run_config)
    header = header_of(message.content)
    expect_sealed(header)
    run_id = header.get("run")
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
        raise KnowledgeError(f"run: expected the name of a run, found {run_id!r:.80}")
    afresh = ""
    if is_own(experiment):
        node = node_of(context.node_config, experiment)
        side, key, store = _client_side(node.experiment.model_dump_json(), node.owner), node.owner.key, node.store
        afresh = node.afresh
    else:
        side, store = _client_side(experiment.model_dump_json(), None), _states_folder(context)
        key = _simulated(list(side.federation.holdings), context.node_config.get("partition-id"))
    may_begin = afresh == run_id and message.metadata.message_type == TRAIN
    with _store_usable(store):
        states = FolderStates(store / run_id)
        state = _state_of(states, key, header, may_begin=may_begin)
    [outcome] = side.handle([ClientTask(message, key, state)])
    if outcome.state is not None:
        with _store_usable(store):
            states.put(key, number(header, "round"), outcome.state)
    return outcome.reply


@contextmanager
def _store_usable(store: Path) -> Iterator[None]:
    """Say in a line what is wrong with the folder of a client's states.

    Raises:
        UserError: it cannot be read or written.
    """
    try:
        yield
    except OSError as error:
        found = f"found: cannot use {error.filename or store}: {error.strerror or error}"
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        make_usable = "make room there" if full else "let the SuperNode's user write there"
        remedy = f"{make_usable}, or name another folder as store in the node config"
        raise UserError(f"store: expected a folder that can be written, {store}, {found}; {remedy}.") from None


def _name_of(message: Message, context: Context) -> str:
    """Return the client that a node acts for, as its configuration says, to begin its answer to a hello with."""
    name = context.node_config.get("client")
    is_known = message.metadata.message_type == HELLO and isinstance(name, str) and KEY.fullmatch(name)
    return f"{name}: " if is_known else ""


def _simulated(keys: list[str], number: object) -> str:
    """Return the client that a node of a simulation acts for."""
    if type(number) is not int or not 0 <= number < len(keys):
        expected = f"expected partition-id, from 0 to {len(keys) - 1}, as a simulation gives it"
        remedy = "set it, or federation.partition = 'own' where each node has samples of its own"
        raise UserError(f"node config: {expected}, found {number!r:.40}; {remedy}.")
    return keys[number]


def _state_of(states: FolderStates, key: str, header: Header, *, may_begin: bool) -> State | None:
    version = number({"version": 0, **header}, "version")
    oldest = number({"keep": version, **header}, "keep")
    try:
        return states.get(key, version, str(header.get("state", "")), oldest)
    except FileNotFoundError as error:
        what = f"{key}: expected its state of round {version} in {error.filename}, found none"
        if may_begin:
            LOG.warning("%s; it begins anew, as its node was told", what)
            return None
        remedy = "name the folder as store in which this node has kept it; if it is lost, and only then"
        raise UserError(f'{what}; {remedy}, begin anew by afresh = "{header["run"]}" in the node config.') from None


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


def _states_here(context: Context, finished: Run, run_id: str) -> dict[str, State | None]:
    """Return the last states of those clients that keep them on this machine; a real client keeps its own."""
    states = FolderStates(_states_folder(context) / run_id)
    found: dict[str, State | None] = {}
    for key, version in finished.versions.items():
        with suppress(FileNotFoundError):
            found[key] = states.get(key, version)
    return found


def _states_folder(context: Context) -> Path:
    out = str(context.run_config.get("out", ""))
    return Path(out) / STATES if out else Path(tempfile.gettempdir()) / f"fedkd-{context.run_id}" / STATES


@lru_cache(maxsize=1)
def _client_side(text: str, owner: Owner | None) -> ClientSide:
    experiment = Experiment.model_validate_json(text)
    return ClientSide(experiment, None if owner is None else build_node(experiment, owner))


server_app = make_server_app()
client_app = make_client_app()
