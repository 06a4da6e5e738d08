"""The Ray grid: our own pool of actors, on this machine or on a Ray cluster.

Actors hold no client: they are given a unit's messages and states, and give replies and states back. When one dies, a
new one takes its place and its unit is run again, with the same bits, because every task is seeded by what it is.
States stay in Ray's object store, on the driver's node, and travel as references, so that any other node may be lost;
what all clients receive is put there once.
"""

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray
from flwr.app import ArrayRecord, Message
from ray.exceptions import RayError, RayTaskError

from fedkd.app.client import TRAIN, failure
from fedkd.app.state import State
from fedkd.app.wire import tensors_in, without_tensors
from fedkd.config import Experiment
from fedkd.engine.cluster import check_room, connect, tell_of_idle_workers
from fedkd.engine.columns import as_columns, as_row, as_rows
from fedkd.engine.grid import KILLED, SimulationGrid, Unit
from fedkd.engine.pool import START_SECONDS, Pool
from fedkd.engine.worker import Sent, whole
from fedkd.errors import RunError

LOG = logging.getLogger("fedkd")
MAX_DEATHS = 3
"""Workers that one unit may kill before its clients fail this round."""
FEW = 16
"""Single clients per worker up to which each is a unit of its own, so that no worker has more to do than another."""
UNITS_PER_WORKER = 4
"""Units that each worker gets where single clients are more: to give out a unit takes some milliseconds."""


@dataclass(frozen=True)
class Stored:
    """A client's state in Ray's object store: all clients of a unit share one object.

    Attributes:
        reference: of the states, as columns.
        row: the client's.
    """

    reference: Any
    row: int


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
        self._started_ray = connect(experiment)
        self._pool = Pool(experiment)
        try:
            check_room(experiment, START_SECONDS)
            tell_of_idle_workers(experiment, list(self._keys.values()))
            self._pool.start(experiment.engine.workers)
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
        if self._started_ray and len(self._pool):
            self._pool.hear_last_words()
        self._pool.kill()

    def run_units(self, units: Sequence[Unit]) -> Iterator[tuple[str, Message, Stored | None]]:
        """Keep every worker busy; run a unit again whose worker died.

        A client that has killed ``MAX_DEATHS`` workers by a type of message gets no more of that type in this run.

        Raises:
            RunError: a dead worker cannot be replaced, or the round takes longer than the experiment allows.
        """
        deadline = monotonic() + self._experiment.engine.timeout
        waiting = deque((unit, 0) for unit in self._joined(units))
        alone = frozenset(unit[0][1] for unit in units if len(unit) == 1)
        running: dict[Any, Running] = {}
        sent: dict[int, tuple[ArrayRecord, Any]] = {}
        try:
            while waiting or running:
                # A unit that has killed a worker gets one without others: who is at work when it dies is to blame.
                while waiting and (worker := self._pool.least_busy(idle=waiting[0][1] > 0)) is not None:
                    unit, deaths = waiting.popleft()
                    replies, tensors, states = self._pool.give(worker, *self._sent(unit, alone, sent))
                    running[replies] = Running(worker, unit, tensors, states, deaths)
                done, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, deadline - monotonic()))
                if not done:
                    raise self._too_late(running)
                yield from self._take(done[0], running, waiting)
        finally:  # whoever asked may have gone
            self._pool.empty_queues()

    def _too_late(self, running: Mapping[Any, Running]) -> RunError:
        """Who is late would depend on the machine, so a simulation ends rather than goes on without."""
        late = sorted(key for reference in self._pool.late() for _, key in running[reference].unit)
        what = f"no reply within {self._experiment.engine.timeout:g} s from {', '.join(late)}"
        return RunError(f"{what}; raise engine.timeout (--set), or mend a client half that does not end.")

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
            self._pool.has_done(one.worker, done)
            del running[done]
            yield from _failures(one.unit, str(error))
        except RayError as error:
            lost = [running.pop(reference) for reference in self._pool.replace(one.worker)]
            waiting.extendleft((other.unit, other.deaths) for other in reversed(lost[1:]))
            guilty = lost[0]
            deaths = guilty.deaths + 1
            if deaths < MAX_DEATHS:
                again = "its client is" if len(guilty.unit) == 1 else f"its {len(guilty.unit)} clients are"
                LOG.warning("a worker died (%s); %s run again", type(error).__name__, again)
                # At last each alone: a client that kills its worker takes nobody with it.
                parts = [[task] for task in guilty.unit] if deaths == MAX_DEATHS - 1 else [guilty.unit]
                waiting.extendleft((part, deaths) for part in reversed(parts))
            else:
                reason = f"{KILLED} {MAX_DEATHS} workers ({type(error).__name__})"
                for message, key in guilty.unit:
                    LOG.warning("%s is in quarantine: it killed %d workers", key, MAX_DEATHS)
                    self.bar(key, message.metadata.message_type, reason)
                yield from _failures(guilty.unit, reason)
        else:
            self._pool.has_done(one.worker, done)
            del running[done]
            rows = as_rows(tensors)
            for row, ((message, key), reply) in enumerate(zip(one.unit, replies, strict=True)):
                trained = message.metadata.message_type == TRAIN and not reply[0].has_error()
                yield key, whole(reply, rows[row]), Stored(states, row) if trained else None

    def _kept(self, one: Running) -> Any:  # noqa: ANN401 - a reference
        """Return a unit's new states so that they outlive the worker's node: what another node holds is copied here."""
        return ray.put(ray.get(one.states)) if self._pool.is_far(one.worker) else one.states

    def read_state(self, state: Stored) -> State:
        """Fetch a state from the object store."""
        return {name: tensor.clone() for name, tensor in as_row(ray.get(state.reference), state.row).items()}

    def store_state(self, key: str, state: State) -> Stored:
        """Put a state into the object store."""
        return Stored(ray.put(as_columns([state])), 0)

    def _joined(self, units: Sequence[Unit]) -> list[Unit]:
        """Join units of single clients where they are many; each of them is run alone all the same."""
        alone, workers = [task for unit in units if len(unit) == 1 for task in unit], len(self._pool)
        size = 1 if len(alone) <= FEW * workers else -(-len(alone) // (UNITS_PER_WORKER * workers))
        joined = [alone[start : start + size] for start in range(0, len(alone), size)]
        together = [unit for unit in units if len(unit) > 1]
        return sorted([*together, *joined], key=lambda unit: min(key for _, key in unit))

    def _sent(
        self, unit: Unit, alone: frozenset[str], sent: dict[int, tuple[ArrayRecord, Any]]
    ) -> tuple[list[Sent], list[Any]]:
        """Return a unit as it is given to a worker, and the objects that go with it.

        Args:
            unit: messages and client keys.
            alone: clients that the plan has with nobody else.
            sent: the records that are in the object store already; what several units carry is put there once.
        """
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
            place = None if state is None else (number_of(state.reference), state.row)
            tasks.append(Sent(bare, key, numbered, place, key in alone))
        return tasks, objects

    def _stop(self) -> None:
        self._pool.kill()
        if self._started_ray:
            ray.shutdown()


def _failures(unit: Unit, reason: str) -> Iterator[tuple[str, Message, None]]:
    for message, key in unit:
        yield key, failure(message, reason), None
