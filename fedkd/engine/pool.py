"""The Ray grid's workers: started together, kept busy, and replaced when they die."""

import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from time import sleep
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from fedkd.config import Experiment
from fedkd.engine.worker import Sent, Worker, this_node
from fedkd.errors import RunError

LOG = logging.getLogger("fedkd")
QUEUE_LENGTH = 2
"""Units that a worker has been given at a time: while the driver reads the replies of one, it works on the next."""
START_SECONDS = 300.0
"""Seconds that a worker may take to start: a cluster may first have to make room for it."""
FAILED_STARTS = 3
"""Workers killed while they start, one after another, after which no more is tried."""
WORDS_SECONDS = 2.0
"""Seconds until what a worker prints has been shown, on a busy machine."""


class Pool:
    """Ray actors, each with a queue of the units that it was given.

    Units are named by the reference of their replies, as Ray gives it.
    """

    def __init__(self, experiment: Experiment) -> None:
        """Prepare to start workers for an experiment; there are none yet."""
        self._class: Any = ray.remote(Worker).options(
            num_cpus=1, num_gpus=experiment.engine.gpus_per_worker, max_restarts=0, max_task_retries=0
        )
        self._arguments = (experiment.model_dump_json(), list(sys.path))
        self._queues: dict[Any, list[Any]] = {}  # what each worker has been given, in the order in which it is done
        self._starting: list[Any] = []
        self._far: set[Any] = set()

    def __len__(self) -> int:
        """Return the number of workers."""
        return len(self._queues)

    def start(self, number: int) -> None:
        """Start workers side by side, and wait until they are ready; one that is killed meanwhile is replaced.

        Raises:
            RunError: a worker cannot be started.
        """
        self._starting += [self._class.remote(*self._arguments) for _ in range(number)]
        deaths = 0
        while self._starting:
            worker = self._starting[0]
            try:
                node = ray.get(worker.ready.remote(), timeout=START_SECONDS)
            except (RayError, GetTimeoutError) as error:
                deaths += 1
                killed = isinstance(error, RayActorError) and not error.actor_init_failed
                if not killed or deaths == FAILED_STARTS:
                    raise RunError(f"a Ray worker could not be started:\n{error}") from error
                LOG.warning("a worker died while it started; another one takes its place")
                self._starting[0] = self._class.remote(*self._arguments)
                continue
            self._queues[self._starting.pop(0)] = []
            if node != this_node():
                self._far.add(worker)

    def is_far(self, worker: Any) -> bool:  # noqa: ANN401 - Ray's types are not public
        """Whether a worker is on another node than the driver's."""
        return worker in self._far

    def least_busy(self, *, idle: bool) -> Any:  # noqa: ANN401
        """Return the worker with the shortest queue; None if all are full, or none is idle and it must be."""
        longest = 0 if idle else QUEUE_LENGTH - 1
        worker = min(self._queues, key=lambda worker: len(self._queues[worker]))
        return worker if len(self._queues[worker]) <= longest else None

    def give(self, worker: Any, tasks: Sequence[Sent], objects: Sequence[Any]) -> tuple[Any, Any, Any]:  # noqa: ANN401
        """Give a unit to a worker.

        Args:
            worker: one of the pool's.
            tasks: the unit.
            objects: references of the columns that it needs.

        Returns:
            References of what :meth:`Worker.run` returns.
        """
        replies, tensors, states = worker.run.options(num_returns=3).remote(list(tasks), *objects)
        self._queues[worker].append(replies)
        return replies, tensors, states

    def has_done(self, worker: Any, unit: Any) -> None:  # noqa: ANN401
        """Strike a unit from a worker's queue."""
        self._queues[worker].remove(unit)

    def empty_queues(self) -> None:
        """Forget what the workers have been given, which nobody waits for any more."""
        for queue in self._queues.values():
            queue.clear()

    def late(self) -> list[Any]:
        """Return the units that the workers are at."""
        return [queue[0] for queue in self._queues.values() if queue]

    def replace(self, worker: Any) -> list[Any]:  # noqa: ANN401
        """Start another worker for one that has died; return the latter's units, first the one that it died at.

        Raises:
            RunError: it cannot be replaced.
        """
        lost = self._queues.pop(worker)
        self._far.discard(worker)
        ray.kill(worker)
        self.start(1)
        return lost

    def hear_last_words(self) -> None:
        """Give Ray the time to show what the workers printed last: it would be lost."""
        with suppress(RayError, GetTimeoutError):
            silent = ray.get([worker.silent_for.remote() for worker in self._queues], timeout=WORDS_SECONDS)
            sleep(max(0.0, WORDS_SECONDS - min(silent, default=WORDS_SECONDS)))

    def kill(self) -> None:
        """Stop all workers, also those that are starting."""
        for worker in [*self._starting, *self._queues]:
            ray.kill(worker)
        self._starting.clear()
        self._queues.clear()
