"""The round loop: greet, then train and evaluate round after round, over any grid that carries Flower messages."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from time import monotonic, perf_counter, sleep
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedkd.app.arrivals import OnCounted
from fedkd.app.checkpoint import KEPT, Snapshot
from fedkd.app.evaluation import evaluate_messages, evaluated, take_evaluations
from fedkd.app.history import ClientRecord, RoundRecord, summarise_run
from fedkd.app.presence import took_no_part
from fedkd.app.server import ServerSide
from fedkd.app.told import TOLD
from fedkd.config import Experiment
from fedkd.errors import RunError
from fedkd.learner.model import Model

OnRound = Callable[[RoundRecord], None]
OnSnapshot = Callable[[Snapshot], bool | None]
_LOOK_SECONDS = 1.0
"""Between looks for clients that are not there."""
_AGAIN_SECONDS = 5.0
"""To wait for the answers of nodes that have not answered a hello before."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        summary: what ``summary.json`` holds.
        rounds: one record per round.
        clients: one record per client, from the last evaluation.
        server_models: the server's models by name.
        versions: the version of each client's last state, by client key; without clients that never took part.
    """

    summary: dict[str, Any]
    rounds: list[RoundRecord]
    clients: list[ClientRecord]
    server_models: dict[str, Model]
    versions: dict[str, int]


@dataclass(frozen=True)
class Start:
    """Where an earlier process came to.

    Attributes:
        snapshot: the server after its last round; the grid holds the clients' states of the versions that it names.
        records: one record per round up to then.
    """

    snapshot: Snapshot
    records: Sequence[RoundRecord]


def run(
    grid: Grid,
    experiment: Experiment,
    on_round: OnRound = lambda record: None,
    on_snapshot: OnSnapshot = lambda snapshot: False,
    start: Start | None = None,
    run_id: str = "",
    on_counted: OnCounted = lambda key, round_: None,
) -> Run:
    """Run an experiment over a grid.

    Args:
        grid: what carries the messages to the clients.
        experiment: what to run.
        on_round: called after every round with its record.
        on_snapshot: called after ``on_round`` with all that a new server needs to go on from there; says whether one
            may do so, so that clients which keep their own states keep those that it asks for.
        start: where to go on; from the beginning without. The summary's seconds are then those of the earlier rounds,
            and of this process.
        run_id: name of the run, under which clients keep their states; a new one without.
        on_counted: called with client key and round as soon as a client's new state counts: its older ones do no more.

    Raises:
        UserError: the experiment cannot be run.
        RunError: clients do not appear, or none of them sends a usable reply.
    """
    started = perf_counter()
    side = ServerSide(experiment, run_id, on_counted)
    timeout = experiment.engine.timeout
    snapshot = start.snapshot if start else None
    records = list(start.records) if start else []
    if snapshot is not None and snapshot.roster and len(records) == experiment.rounds:
        side.welcome([], snapshot)  # nobody is asked anything any more
    else:
        nodes = wait_for_nodes(grid, experiment, len(snapshot.roster) if snapshot else 0)
        side.welcome(grid.send_and_receive(side.hello_messages(nodes), timeout=timeout), snapshot)
    clients = list(snapshot.clients) if snapshot else []
    earlier = sum(record.seconds for record in records)
    for round_ in range(len(records) + 1, experiment.rounds + 1):
        before = perf_counter()
        greet(grid, side)
        messages = side.train_messages(round_)
        record = side.take_replies(messages, _exchange(grid, messages, timeout))
        if _is_due(round_, experiment):
            messages = evaluate_messages(side)
            found = take_evaluations(side, messages, _exchange(grid, messages, timeout))
            record, clients = evaluated(record, found, side.arrivals.refused), found.clients
        records.append(replace(record, seconds=round(perf_counter() - before, 4)))
        on_round(records[-1])
        snapshot = side.snapshot(records[-1], clients)
        if on_snapshot(snapshot):
            side.kept = [*side.kept, snapshot.versions][-KEPT:]
    summary = summarise_run(experiment.strategy, experiment.seed, records, earlier + perf_counter() - started)
    if outside := took_no_part(side.presence, side.roster, records, experiment.federation.clients):
        summary["took_no_part"] = outside
    return Run(summary, records, clients, dict(side.server.models), dict(side.versions))


def greet(grid: Grid, side: ServerSide) -> None:
    """Look who is there before a round: clients that have come back take part again, and enough of them must be there.

    Raises:
        RunError: too few are, within ``engine.join_timeout``.
    """
    experiment = side.experiment
    seconds, fewest = experiment.engine.join_timeout, experiment.federation.min_clients or 1
    deadline = monotonic() + seconds
    while True:
        silent = set(side.presence.asked)
        messages = side.look(grid.get_node_ids())
        fresh = any(message.metadata.dst_node_id not in silent for message in messages)
        side.take_back(_exchange(grid, messages, seconds if fresh else min(seconds, _AGAIN_SECONDS)))
        found = len(side.roster) - len(side.presence.absent)
        if found >= fewest:
            return
        if monotonic() > deadline:
            what = f"expected at least {fewest} of {len(side.roster)} clients within {seconds:g} s, found {found}"
            missing = ", ".join(sorted(side.presence.absent))
            causes = "\n".join(side.presence.told.values())
            raise RunError(f"{what}; start {missing}, and then this run again.\n{causes}".strip())
        sleep(min(seconds, _LOOK_SECONDS))


def wait_for_nodes(grid: Grid, experiment: Experiment, known: int = 0) -> list[int]:
    """Wait until all clients are there: a grid may be empty at the start.

    Args:
        grid: what carries the messages.
        experiment: what is run.
        known: number of clients of a run that is gone on with: they are waited for, but some may be gone.

    Raises:
        RunError: too few are, within ``engine.join_timeout``.
    """
    seconds, count = experiment.engine.join_timeout, known or experiment.federation.clients
    fewest = experiment.federation.min_clients or (1 if known else count)
    deadline, told = monotonic() + seconds, -1
    while len(nodes := list(grid.get_node_ids())) < count:
        if monotonic() > deadline:
            if len(nodes) >= fewest:
                what = len(nodes), count, seconds
                TOLD.warning("%d of %d clients appeared within %g s; the run starts without the others", *what)
                break
            at_least = "" if fewest == count else f"at least {fewest} of "
            raise RunError(
                f"expected {at_least}{count} clients within {seconds:g} s, found {len(nodes)}; start the others."
            )
        if len(nodes) != told:
            told = len(nodes)
            TOLD.info("waiting for clients: %d of %d are there", told, count)
        sleep(0.1)
    return nodes


def _exchange(grid: Grid, messages: list[Message], timeout: float) -> Iterable[Message]:
    return grid.send_and_receive(messages, timeout=timeout) if messages else []


def _is_due(round_: int, experiment: Experiment) -> bool:
    every = experiment.engine.evaluate_every
    return round_ == experiment.rounds or (every > 0 and round_ % every == 0)
