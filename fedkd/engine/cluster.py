"""The Ray that a grid's workers run on: this process's own, one for this run alone, or a cluster by its address."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import ray

from fedkd.config import Experiment
from fedkd.errors import UserError
from fedkd.learner.cohort import SMALLEST_COHORT
from fedkd.learner.plan import chunks_in_a_round

LOG = logging.getLogger("fedkd")
GIGA = 1e9
WORKER_BYTES = 0.6e9
"""Memory that a worker has for itself once torch and the small data sets are loaded (measured: 0.5 GB)."""
CONNECT_SECONDS = 5.0
"""Seconds that a Ray cluster may take to answer at its address."""


def connect(experiment: Experiment) -> bool:
    """Join the experiment's cluster, use a Ray that this process already runs, or start one; return whether started."""
    if ray.is_initialized():
        if experiment.engine.address:
            LOG.warning("engine.address is not used: this process is connected to a Ray already, and the run uses that")
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as later versions do; Ray warns until then
    with _signals_kept():
        try:
            _start_or_join(experiment)
        except BaseException as error:  # also an interrupt: what was started so far must not stay
            ray.shutdown()
            if isinstance(error, SystemExit):  # Ray's own answer to SIGTERM
                raise KeyboardInterrupt from error
            raise
    return True


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Give SIGTERM its handler back, which Ray takes without a word: it would end a run in the middle of anything."""
    before = signal.getsignal(signal.SIGTERM)
    ours = threading.current_thread() is threading.main_thread()  # the only one that Ray, or anybody, may do it in
    try:
        yield
    finally:
        if ours and before is not None:  # None: not from Python, who cannot give it back
            signal.signal(signal.SIGTERM, before)


def _start_or_join(experiment: Experiment) -> None:
    threads = str(experiment.engine.threads)
    environment = {"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}}
    if experiment.engine.address:
        _join(experiment.engine.address, environment)
        return
    ray.init(
        address="local",  # never somebody else's cluster that happens to run on this machine
        num_cpus=experiment.engine.workers,
        include_dashboard=False,
        logging_level=logging.ERROR,
        runtime_env=environment,
    )


def _join(address: str, environment: dict[str, Any]) -> None:
    """Join a running cluster. Ray would wait for minutes for one that is not there, so the door is tried first.

    Raises:
        UserError: there is none at the address.
    """
    place = re.fullmatch(r"(?:ray://)?(\[[^\]]+\]|[^:/]+):(\d{1,5})", address)
    if place is None and address != "auto":
        raise UserError(f"engine.address: expected ray://host:port, host:port or 'auto', found {address!r}.")
    try:
        if place is not None:
            socket.create_connection((place[1].strip("[]"), int(place[2])), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, logging_level=logging.ERROR, runtime_env=environment)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        cause = f"found none that answers: {' '.join(str(error).split())}"
        raise UserError(f"engine.address: expected a running Ray cluster at {address!r}, {cause}.") from error


def tell_of_idle_workers(experiment: Experiment, keys: Sequence[str]) -> None:
    """Warn if some workers will have nothing to do.

    Args:
        experiment: what is run.
        keys: of all clients.
    """
    engine, chunks = experiment.engine, chunks_in_a_round(experiment, keys)
    if chunks >= engine.workers:
        return
    remedy, clients = "lower it", experiment.federation.taking_part(len(keys))
    smaller = max(SMALLEST_COHORT, ceil(clients / engine.workers))
    if engine.plan == "cohorts" and smaller < min(engine.cohort_size, clients):
        remedy = f"lower engine.cohort_size to {smaller}, which changes no bit, or engine.workers"
    found = f"{engine.workers} workers, where a round has work for {chunks} at a time"
    LOG.warning("engine.workers: %s; %s", found, remedy)


def check_room(experiment: Experiment, patience: float) -> None:
    """Refuse to wait for what will never be there; a cluster that is joined by address may grow.

    Args:
        experiment: says what its workers need.
        patience: seconds for which it is waited until the cluster has grown.

    Raises:
        UserError: Ray, started for this experiment alone, has less.
    """
    engine = experiment.engine
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    workers = engine.workers
    for what, needed, unit in (
        ("CPU", workers, 1.0),
        ("GPU", workers * engine.gpus_per_worker, 1.0),
        ("memory", workers * WORKER_BYTES, GIGA),
    ):
        if needed <= has.get(what, 0):
            continue
        name = "GB of memory" if what == "memory" else what
        found = f"{needed / unit:g} {name} for {workers} workers, found {has.get(what, 0) / unit:.3g}"
        lower = "engine.workers" if what != "GPU" else "engine.workers or engine.gpus_per_worker"
        if not engine.address:
            raise UserError(f"engine: expected {found}; lower {lower}.")
        LOG.warning("engine: expected %s; waiting %g s for the cluster to grow, else lower %s", found, patience, lower)
