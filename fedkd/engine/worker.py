"""What runs in one of the Ray grid's workers, and what travels to it and back."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import time

import ray
from flwr.app import Message
from torch import Tensor

from fedkd.app.client import ClientSide, ClientTask
from fedkd.app.state import State
from fedkd.app.wire import tensors_in, to_arrays, without_tensors
from fedkd.config import Experiment
from fedkd.engine.columns import Columns, as_columns, as_rows


@dataclass(frozen=True)
class Sent:
    """One message as it is sent to a worker: tensors go beside it as objects, which many tasks may share.

    Attributes:
        message: without its records of tensors.
        key: the client's name.
        records: for each of these records the number of the object that holds it, by name.
        state: number of the object, and row in it, that hold the client's state; None before its first round.
        alone: whether the plan has it with nobody else: it is run alone then, with whomever it travels.
    """

    message: Message
    key: str
    records: Mapping[str, int]
    state: tuple[int, int] | None
    alone: bool = False


Bare = tuple[Message, Sequence[str]]
"""A reply without its records of tensors, and these records' names."""


class Worker:
    """What an actor runs: one process that can act for any client of the experiment."""

    def __init__(self, experiment_text: str, path: list[str]) -> None:
        """Prepare the process; the driver's import path finds the user's own strategies."""
        sys.path[:] = list(dict.fromkeys([*path, *sys.path]))
        self._side = ClientSide(Experiment.model_validate_json(experiment_text))

    def ready(self) -> str:
        """Return the node on which the process is, once it is prepared."""
        return this_node()

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
        chunks = [[task] for task in tasks] if tasks[0].alone else [tasks]
        outcomes = [outcome for chunk in chunks for outcome in self._side.handle([_task(one, rows) for one in chunk])]
        replies = [without_tensors(outcome.reply) for outcome in outcomes]
        tensors = [
            {f"{name}/{field}": t for name, record in taken.items() for field, t in tensors_in(record).items()}
            for _, taken in replies
        ]
        states = [outcome.state or {} for outcome in outcomes]
        return [(reply, tuple(taken)) for reply, taken in replies], as_columns(tensors), as_columns(states)


def _task(sent: Sent, rows: Sequence[Sequence[State]]) -> ClientTask:
    return ClientTask(sent.message, sent.key, None if sent.state is None else rows[sent.state[0]][sent.state[1]])


def whole(bare: Bare, tensors: Mapping[str, Tensor]) -> Message:
    """Return a worker's reply with its records of tensors; the tensors are named ``record/name``."""
    reply, names = bare
    records: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for path, tensor in tensors.items():
        record, _, name = path.partition("/")
        records[record][name] = tensor
    for record, named in records.items():
        reply.content[record] = to_arrays(named)
    return reply


def this_node() -> str:
    """Return the name of the node on which this process is."""
    name: str = ray.get_runtime_context().get_node_id()
    return name
