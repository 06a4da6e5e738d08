"""The Ray grid: our own pool of actors, on this machine or on a Ray cluster.

Actors hold no client: they are given a unit's messages and states, and give replies and states back. When one dies, a
new one takes its place and its unit is run again, with the same bits, because every task is seeded by what it is.
States stay in Ray's object store and travel as references.
"""

import logging
import os
import re
import socket
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any

import ray
from flwr.app import Message
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from fedkd.app.client import TRAIN, ClientSide, ClientTask
from fedkd.app.state import State, from_bytes, to_bytes
from fedkd.config import Experiment
from fedkd.engine.grid import SimulationGrid, Unit, failure
from fedkd.errors import RunError, UserError

LOG = logging.getLogger("fedkd")
MAX_DEATHS = 3
"""Workers that one unit may kill before its clients fail this round."""
GIGA = 1e9
WORKER_BYTES = 0.6e9
"""Memory that a worker has for itself once torch and the small data sets are loaded (measured: 0.5 GB)."""
CONNECT_SECONDS = 5.0
"""Seconds that a Ray cluster may take to answer at its address."""
START_SECONDS = 300.0
"""Seconds that a worker may take to start: a cluster may first have to make room for it."""


class Worker:
    """What an actor runs: one process that can act for any client of the experiment."""

    def __init__(self, experiment_text: str, path: list[str]) -> None:
        """Prepare the process; the driver's import path finds the user's own strategies."""
        sys.path[:] = list(dict.fromkeys([*path, *sys.path]))
        self._side = ClientSide(Experiment.model_validate_json(experiment_text))

    def ready(self) -> None:
        """Return once the process is prepared."""

    def run(self, messages: list[Message], keys: list[str], *states: bytes | None) -> list[Any]:
        """Run one unit; return the replies, then the new states, one return value each."""
        tensors = [None if state is None else from_bytes(state) for state in states]
        tasks = [ClientTask(*task) for task in zip(messages, keys, tensors, strict=True)]
        outcomes = self._side.handle(tasks)
        return [[o.reply for o in outcomes], *(None if o.state is None else to_bytes(o.state) for o in outcomes)]


class RayGrid(SimulationGrid[Any]):
    """A grid that runs clients in Ray actors.

    Use it as a context manager: leaving it stops what it started.
    """

    def __init__(self, experiment: Experiment) -> None:
        """Connect to Ray, or start it on this machine, and start the workers.

        Raises:
            UserError: Ray has less than the workers need.
            RunError: a worker cannot be started.
        """
        super().__init__(experiment)
        self._workers: list[Any] = []
        self._idle: list[Any] = []
        self._started_ray = _connect(experiment)
        self._actor_class: Any = ray.remote(Worker).options(
            num_cpus=1, num_gpus=experiment.engine.gpus_per_worker, max_restarts=0, max_task_retries=0
        )
        self._arguments = (experiment.model_dump_json(), list(sys.path))
        try:
            _check_room(experiment)
            self._start(max(1, experiment.engine.workers))
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> "RayGrid":
        """Return the grid."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the workers, and Ray if it was started here."""
        self._stop()

    def run_units(self, units: Sequence[Unit[Any]]) -> Iterator[tuple[str, Message, Any]]:
        """Keep every worker busy; run a unit again whose worker died.

        Raises:
            RunError: a dead worker cannot be replaced, or the round takes longer than the experiment allows.
        """
        deadline = monotonic() + self._experiment.engine.timeout
        waiting = deque((unit, 0) for unit in units)
        running: dict[Any, tuple[Any, Unit[Any], list[Any], int]] = {}
        while waiting or running:
            while waiting and self._idle:
                unit, deaths = waiting.popleft()
                worker = self._idle.pop()
                replies, *states = self._submit(worker, unit)
                running[replies] = (worker, unit, states, deaths)
            done, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, deadline - monotonic()))
            if not done:  # who is late would depend on the machine: a simulation ends rather than goes on without
                late = sorted(key for _, unit, *_ in running.values() for _, key, _ in unit)
                seconds = self._experiment.engine.timeout
                raise RunError(f"no reply within {seconds:.0f} s from {', '.join(late)}; raise engine.timeout.")
            worker, unit, states, deaths = running.pop(done[0])
            try:
                replies = ray.get(done[0])
            except RayTaskError as error:  # our own code raised: the worker lives, and would only raise again
                self._idle.append(worker)
                yield from _failures(unit, str(error))
            except RayError as error:
                ray.kill(worker)
                self._start(1)
                if deaths + 1 < MAX_DEATHS:
                    LOG.warning("a worker died (%s); its %d clients are run again", type(error).__name__, len(unit))
                    # Each alone, with the same bits: a client that kills its worker takes nobody with it.
                    waiting.extendleft(([task], deaths + 1) for task in unit)
                else:
                    yield from _failures(unit, f"killed {MAX_DEATHS} workers: {error}")
            else:
                self._idle.append(worker)
                for (message, key, _), reply, state in zip(unit, replies, states, strict=True):
                    yield key, reply, state if message.metadata.message_type == TRAIN else None

    def read_state(self, state: Any) -> State:  # noqa: ANN401 - a reference
        """Fetch a state from the object store."""
        return from_bytes(ray.get(state))

    def _submit(self, worker: Any, unit: Unit[Any]) -> list[Any]:  # noqa: ANN401
        messages, keys = [message for message, _, _ in unit], [key for _, key, _ in unit]
        states = [state for _, _, state in unit]
        references: list[Any] = worker.run.options(num_returns=1 + len(unit)).remote(messages, keys, *states)
        return references

    def _start(self, number: int) -> None:
        """Start workers side by side, and wait until they are ready."""
        fresh = [self._actor_class.remote(*self._arguments) for _ in range(number)]
        self._workers += fresh
        for worker in fresh:
            try:
                ray.get(worker.ready.remote(), timeout=START_SECONDS)
            except (RayError, GetTimeoutError) as error:
                raise RunError(f"a Ray worker could not be started:\n{error}") from error
        self._idle += fresh

    def _stop(self) -> None:
        for worker in self._workers:
            ray.kill(worker)
        if self._started_ray:
            ray.shutdown()


def _failures(unit: Unit[Any], reason: str) -> Iterator[tuple[str, Message, None]]:
    for message, key, _ in unit:
        yield key, failure(message, reason), None


def _connect(experiment: Experiment) -> bool:
    """Join the experiment's cluster, use a Ray that this process already runs, or start one; return whether started."""
    if ray.is_initialized():
        return False
    threads = str(experiment.engine.threads)
    environment = {"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}}
    if experiment.engine.address:
        _join(experiment.engine.address, environment)
        return True
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as later versions do; Ray warns until then
    ray.init(
        address="local",  # never somebody else's cluster that happens to run on this machine
        num_cpus=max(1, experiment.engine.workers),
        include_dashboard=False,
        logging_level=logging.ERROR,
        runtime_env=environment,
    )
    return True


def _join(address: str, environment: dict[str, Any]) -> None:
    """Join a running cluster. Ray would wait for minutes for one that is not there, so the door is tried first.

    Raises:
        UserError: there is none at the address.
    """
    place = re.fullmatch(r"(?:ray://)?([^:/]+):(\d{1,5})", address)
    if place is None and address != "auto":
        raise UserError(f"engine.address: expected ray://host:port, host:port or 'auto', found {address!r}.")
    try:
        if place is not None:
            socket.create_connection((place[1], int(place[2])), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, runtime_env=environment)
    except (OSError, OverflowError, RuntimeError) as error:
        cause = f"found none that answers: {' '.join(str(error).split())}"
        raise UserError(f"engine.address: expected a running Ray cluster at {address!r}, {cause}.") from error


def _check_room(experiment: Experiment) -> None:
    """Refuse to wait for what will never be there; a cluster that is joined by address may grow."""
    engine = experiment.engine
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    workers = max(1, engine.workers)
    for what, needed, unit in (
        ("CPU", workers, 1.0),
        ("GPU", workers * engine.gpus_per_worker, 1.0),
        ("memory", workers * WORKER_BYTES, GIGA),
    ):
        if needed > has.get(what, 0) and not engine.address:
            name = "GB of memory" if what == "memory" else what
            found = f"{needed / unit:g} {name} for {workers} workers, found {has.get(what, 0) / unit:.3g}"
            raise UserError(f"engine: expected {found}; lower engine.workers or engine.gpus_per_worker.")
