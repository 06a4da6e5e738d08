"""The Ray grid: our own pool of actors, on this machine or on a Ray cluster.

Actors hold no client: they are given a unit's messages and states, and give replies and states back. When one dies, a
new one takes its place and its unit is run again, with the same bits, because every task is seeded by what it is.
States stay in Ray's object store, on the driver's node, and travel as references, so that any other node may be lost;
what all clients receive is put there once.
"""

import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, sleep, time
from typing import Any

import ray
from flwr.app import ArrayRecord, Message
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from torch import Tensor

from fedkd.app.client import TRAIN, ClientSide, ClientTask, failure
from fedkd.app.state import State
from fedkd.app.wire import tensors_in, to_arrays, without_tensors
from fedkd.config import Experiment
from fedkd.engine.cluster import check_room, connect, tell_of_idle_workers
from fedkd.engine.columns import Columns, as_columns, as_row, as_rows
from fedkd.engine.grid import SimulationGrid, Unit
from fedkd.errors import RunError

LOG = logging.getLogger("fedkd")
MAX_DEATHS = 3
"""Workers that one unit may kill before its clients fail this round."""
QUEUE_LENGTH = 2
"""Units that a worker has been given at a time: while the driver reads the replies of one, it works on the next."""
FEW = 16
"""Single clients per worker up to which each is a unit of its own, so that no worker has more to do than another."""
UNITS_PER_WORKER = 4
"""Units that each worker gets where single clients are more: to give out a unit takes some milliseconds."""
START_SECONDS = 300.0
"""Seconds that a worker may take to start: a cluster may first have to make room for it."""
WORDS_SECONDS = 2.0
"""Seconds until what a worker prints has been shown, on a busy machine."""


@dataclass(frozen=True)
class Sent:
    """One message as it is sent to a worker: tensors go beside it as objects, which many tasks may share.

    Attributes:
        message: without its records of tensors.
        key: the client's name.
        records: for each of these records the number of the object that holds it, by name.
        state: number of the object, and row in it, that hold the client's state; None before its first round.
    """

    message: Message
    key: str
    records: Mapping[str, int]
    state: tuple[int, int] | None


@dataclass(frozen=True)
class Stored:
    """A client's state in Ray's object store: all clients of a unit share one object.

    Attributes:
        reference: of the states, as columns.
        row: the client's.
    """

    reference: Any
    row: int


Bare = tuple[Message, Sequence[str]]
"""A reply without its records of tensors, and these records' names."""


@dataclass
class Running:
    """A unit that a worker has been given.

    Attributes:
        worker: the actor.
        unit: messages and client keys.
        tensors: reference of what the replies carry.
        states: reference of the new states.
        deaths: workers that died of this unit so far.
    """

    worker: Any
    unit: Unit
    tensors: Any
    states: Any
    deaths: int


class Worker:
    """What an actor runs: one process that can act for any client of the experiment."""

    def __init__(self, experiment_text: str, path: list[str]) -> None:
        """Prepare the process; the driver's import path finds the user's own strategies."""
        sys.path[:] = list(dict.fromkeys([*path, *sys.path]))
        self._side = ClientSide(Experiment.model_validate_json(experiment_text))

    def ready(self) -> str:
        """Return the node on which the process is, once it is prepared."""
        return _node()

    def silent_for(self) -> float:
        """Return the seconds since something was last printed here: Ray keeps both outputs in files."""
        return time() - max(os.fstat(number).st_mtime for number in (1, 2))

    def run(self, tasks: list[Sent], *objects: Columns) -> tuple[list[Bare], Columns, Columns]:
        """Run one unit.

        Returns:
            The replies without their records of tensors, and these records' names; the tensors; and the new states. Of
            the last two a row per task.
        """
        rows = [as_rows(columns) for columns in objects]
        records = {k: to_arrays(rows[k][0]) for k in {k for task in tasks for k in task.records.values()}}
        for task in tasks:
            for name, k in task.records.items():
                task.message.content[name] = records[k]
        outcomes = self._side.handle(
            [ClientTask(t.message, t.key, None if t.state is None else rows[t.state[0]][t.state[1]]) for t in tasks]
        )
        replies = [without_tensors(outcome.reply) for outcome in outcomes]
        tensors = [
            {f"{name}/{field}": t for name, record in taken.items() for field, t in tensors_in(record).items()}
            for _, taken in replies
        ]
        states = [outcome.state or {} for outcome in outcomes]
        return [(reply, tuple(taken)) for reply, taken in replies], as_columns(tensors), as_columns(states)


class RayGrid(SimulationGrid[Stored]):
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
        self._queues: dict[Any, list[Any]] = {}  # what each worker has been given, in the order in which it is done
        self._starting: list[Any] = []
        self._far: set[Any] = set()  # workers on other nodes than the driver's
        self._quarantined: dict[tuple[str, str], str] = {}  # why, by client key and type of message
        self._started_ray = connect(experiment)
        self._actor_class: Any = ray.remote(Worker).options(
            num_cpus=1, num_gpus=experiment.engine.gpus_per_worker, max_restarts=0, max_task_retries=0
        )
        self._arguments = (experiment.model_dump_json(), list(sys.path))
        try:
            check_room(experiment, START_SECONDS)
            tell_of_idle_workers(experiment, list(self._keys.values()))
            self._start(experiment.engine.workers)
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> "RayGrid":
        """Return the grid."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Stop the workers, and Ray if it was started here."""
        if kind is None:
            self.dismiss_workers()
        self._stop()

    def dismiss_workers(self) -> None:
        """Stop the workers, whose memory the last states may need; the states lie in the object store."""
        if self._started_ray and self._queues:
            self._hear_last_words()
        self._kill_workers()

    def run_units(self, units: Sequence[Unit]) -> Iterator[tuple[str, Message, Stored | None]]:
        """Keep every worker busy; run a unit again whose worker died.

        A client that has killed ``MAX_DEATHS`` workers by a type of message gets no more of that type in this run.

        Raises:
            RunError: a dead worker cannot be replaced, or the round takes longer than the experiment allows.
        """
        deadline = monotonic() + self._experiment.engine.timeout
        sound, barred = self._without_quarantined(units)
        yield from barred
        waiting = deque((unit, 0) for unit in self._joined(sound))
        running: dict[Any, Running] = {}
        sent: dict[int, tuple[ArrayRecord, Any]] = {}
        while waiting or running:
            while waiting and (worker := self._least_busy(waiting[0][1])) is not None:
                unit, deaths = waiting.popleft()
                replies, tensors, states = self._submit(worker, unit, sent)
                running[replies] = Running(worker, unit, tensors, states, deaths)
                self._queues[worker].append(replies)
            done, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, deadline - monotonic()))
            if not done:  # who is late would depend on the machine: a simulation ends rather than goes on without
                late = sorted(key for queue in self._queues.values() for r in queue[:1] for _, key in running[r].unit)
                seconds = self._experiment.engine.timeout
                raise RunError(f"no reply within {seconds:g} s from {', '.join(late)}; raise engine.timeout (--set).")
            yield from self._take(done[0], running, waiting)

    def _take(
        self,
        done: Any,  # noqa: ANN401 - a reference
        running: dict[Any, Running],
        waiting: deque[tuple[Unit, int]],
    ) -> Iterator[tuple[str, Message, Stored | None]]:
        """Yield what a unit led to; of a dead worker's units the one at which it died is charged, the others wait."""
        one = running[done]
        try:
            (replies, tensors), states = ray.get([done, one.tensors]), self._kept(one)
        except RayTaskError as error:  # our own code raised: the worker lives, and would only raise again
            self._queues[one.worker].remove(done)
            del running[done]
            yield from _failures(one.unit, str(error))
        except RayError as error:
            lost = [running.pop(reference) for reference in self._queues.pop(one.worker)]
            self._far.discard(one.worker)
            ray.kill(one.worker)
            self._start(1)
            waiting.extendleft((other.unit, other.deaths) for other in reversed(lost[1:]))
            guilty = lost[0]
            if guilty.deaths + 1 < MAX_DEATHS:
                again = "its client is" if len(guilty.unit) == 1 else f"its {len(guilty.unit)} clients are"
                LOG.warning("a worker died (%s); %s run again", type(error).__name__, again)
                # Each alone, with the same bits: a client that kills its worker takes nobody with it.
                waiting.extendleft(([task], guilty.deaths + 1) for task in guilty.unit)
            else:
                reason = f"killed {MAX_DEATHS} workers ({type(error).__name__})"
                for message, key in guilty.unit:
                    LOG.warning("%s is in quarantine: it killed %d workers", key, MAX_DEATHS)
                    self._quarantined[key, message.metadata.message_type] = f"in quarantine since it {reason}"
                yield from _failures(guilty.unit, reason)
        else:
            self._queues[one.worker].remove(done)
            del running[done]
            rows = as_rows(tensors)
            for row, ((message, key), (reply, names)) in enumerate(zip(one.unit, replies, strict=True)):
                trained = message.metadata.message_type == TRAIN and not reply.has_error()
                yield key, _with_records(reply, names, rows[row]), Stored(states, row) if trained else None

    def _without_quarantined(self, units: Sequence[Unit]) -> tuple[list[Unit], list[tuple[str, Message, None]]]:
        """Divide what is to be run from the failures of clients in quarantine; the others' units keep their order."""
        if not self._quarantined:
            return list(units), []
        sound: list[Unit] = []
        barred: list[tuple[str, Message, None]] = []
        for unit in units:
            reasons = [self._quarantined.get((key, message.metadata.message_type)) for message, key in unit]
            if rest := [task for task, reason in zip(unit, reasons, strict=True) if reason is None]:
                sound.append(rest)
            for task, reason in zip(unit, reasons, strict=True):
                barred += [] if reason is None else _failures([task], reason)
        return sound, barred

    def _kept(self, one: Running) -> Any:  # noqa: ANN401 - a reference
        """Return a unit's new states so that they outlive the worker's node: what another node holds is copied here."""
        return ray.put(ray.get(one.states)) if one.worker in self._far else one.states

    def read_state(self, state: Stored) -> State:
        """Fetch a state from the object store."""
        return {name: tensor.clone() for name, tensor in as_row(ray.get(state.reference), state.row).items()}

    def store_state(self, key: str, state: State) -> Stored:
        """Put a state into the object store."""
        return Stored(ray.put(as_columns([state])), 0)

    def _joined(self, units: Sequence[Unit]) -> list[Unit]:
        """Join units of single clients, whose bits do not depend on it, where they are many."""
        alone, workers = [task for unit in units if len(unit) == 1 for task in unit], len(self._queues)
        size = 1 if len(alone) <= FEW * workers else -(-len(alone) // (UNITS_PER_WORKER * workers))
        joined = [alone[start : start + size] for start in range(0, len(alone), size)]
        together = [unit for unit in units if len(unit) > 1]
        return sorted([*together, *joined], key=lambda unit: min(key for _, key in unit))

    def _least_busy(self, deaths: int) -> Any:  # noqa: ANN401
        """Return the worker with the shortest queue, None if all are full; who killed one gets one without others."""
        longest = 0 if deaths else QUEUE_LENGTH - 1
        worker = min(self._queues, key=lambda worker: len(self._queues[worker]))
        return worker if len(self._queues[worker]) <= longest else None

    def _submit(self, worker: Any, unit: Unit, sent: dict[int, tuple[ArrayRecord, Any]]) -> list[Any]:  # noqa: ANN401
        """Give a unit to a worker; what several units carry is put into the object store once."""
        objects: list[Any] = []
        numbers: dict[Any, int] = {}

        def number_of(reference: Any) -> int:  # noqa: ANN401
            if reference not in numbers:
                numbers[reference] = len(objects)
                objects.append(reference)
            return numbers[reference]

        tasks = []
        for message, key in unit:
            bare, records = without_tensors(message)
            for record in records.values():
                if id(record) not in sent:
                    sent[id(record)] = record, ray.put(as_columns([tensors_in(record)]))
            numbered = {name: number_of(sent[id(record)][1]) for name, record in records.items()}
            state = self.state_for(message, key)
            tasks.append(Sent(bare, key, numbered, None if state is None else (number_of(state.reference), state.row)))
        references: list[Any] = worker.run.options(num_returns=3).remote(tasks, *objects)
        return references

    def _start(self, number: int) -> None:
        """Start workers side by side, and wait until they are ready; one that is killed meanwhile is replaced.

        Raises:
            RunError: a worker cannot be started.
        """
        self._starting += [self._actor_class.remote(*self._arguments) for _ in range(number)]
        deaths = 0
        while self._starting:
            worker = self._starting[0]
            try:
                node = ray.get(worker.ready.remote(), timeout=START_SECONDS)
            except (RayError, GetTimeoutError) as error:
                deaths += 1
                killed = isinstance(error, RayActorError) and not error.actor_init_failed
                if not killed or deaths == MAX_DEATHS:
                    raise RunError(f"a Ray worker could not be started:\n{error}") from error
                LOG.warning("a worker died while it started; another one takes its place")
                self._starting[0] = self._actor_class.remote(*self._arguments)
                continue
            self._queues[self._starting.pop(0)] = []
            if node != _node():
                self._far.add(worker)

    def _hear_last_words(self) -> None:
        """Give Ray the time to show what the workers printed last: it would be lost."""
        with suppress(RayError, GetTimeoutError):
            silent = ray.get([worker.silent_for.remote() for worker in self._queues], timeout=WORDS_SECONDS)
            sleep(max(0.0, WORDS_SECONDS - min(silent, default=WORDS_SECONDS)))

    def _kill_workers(self) -> None:
        for worker in [*self._starting, *self._queues]:
            ray.kill(worker)
        self._starting.clear()
        self._queues.clear()

    def _stop(self) -> None:
        self._kill_workers()
        if self._started_ray:
            ray.shutdown()


def _node() -> str:
    """Return the name of the node on which this process is."""
    name: str = ray.get_runtime_context().get_node_id()
    return name


def _with_records(reply: Message, names: Sequence[str], tensors: Mapping[str, Tensor]) -> Message:
    """Return a reply with its records of tensors, of these names; the tensors are named ``record/name``."""
    records: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for path, tensor in tensors.items():
        record, _, name = path.partition("/")
        records[record][name] = tensor
    for record, named in records.items():
        reply.content[record] = to_arrays(named)
    return reply


def _failures(unit: Unit, reason: str) -> Iterator[tuple[str, Message, None]]:
    for message, key in unit:
        yield key, failure(message, reason), None
