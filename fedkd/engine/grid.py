"""What our own grids share: Flower's interface, the clients' states, and the units in which clients are run."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedkd.app.client import EVALUATE, TRAIN, failure
from fedkd.app.history import RoundRecord
from fedkd.app.state import MemoryStates, State
from fedkd.app.wire import header_of, number
from fedkd.config import Experiment
from fedkd.data.federation import build
from fedkd.errors import RunError
from fedkd.learner.plan import plan, tell_of_unfit_models

S = TypeVar("S")
KILLED, _BARRED = "killed", "in quarantine since it"
"""How the reasons begin for which a client fails that has killed its workers, then and in later rounds."""
Unit = Sequence[tuple[Message, str]]
"""What one worker runs at a time: messages, each with its client's key."""


class SimulationGrid(Grid, Generic[S]):
    """A grid on which one process or cluster plays all clients.

    A client's state goes in with its message and comes back with its reply, so a message may be answered twice and a
    worker may die. It is looked up only when its unit is given out, so that what counts no more is free at once.
    """

    def __init__(self, experiment: Experiment) -> None:
        """Give every client of the experiment a node: numbers from 1, in the order of the keys."""
        self._experiment = experiment
        self._keys = dict(enumerate(build(experiment).holdings, start=1))
        tell_of_unfit_models(experiment)
        self._states: MemoryStates[S] = MemoryStates()
        self._quarantined: dict[tuple[str, str], str] = {}  # why, by client key and type of message
        self._replies: dict[str, Message] = {}
        self._numbers = count(1)

    @abstractmethod
    def run_units(self, units: Sequence[Unit]) -> Iterator[tuple[str, Message, S | None]]:
        """Run units, from the states of :meth:`state_for`; yield (key, reply, new state) in any order."""

    @abstractmethod
    def read_state(self, state: S) -> State:
        """Return a state's tensors."""

    @abstractmethod
    def store_state(self, key: str, state: State) -> S:
        """Return a client's state in the form in which this grid keeps it."""

    def dismiss_workers(self) -> None:
        """Free what only running clients needs, after the last message; the states can still be read."""

    def put_state(self, key: str, version: int, state: State) -> None:
        """Keep a client's state that an earlier process has trained."""
        self._states.put(key, version, self.store_state(key, state))

    def recall(self, records: Sequence[RoundRecord]) -> None:
        """Keep in quarantine who was so in the earlier rounds of a run that is gone on with."""
        for record in records:
            for type_, failed in ((TRAIN, record.failed), (EVALUATE, record.unmeasured)):
                for key, reason in failed.items():
                    if reason.startswith((f"{KILLED} ", f"{_BARRED} ")):
                        self.bar(key, type_, reason.removeprefix(_BARRED).lstrip())

    def bar(self, key: str, message_type: str, reason: str) -> None:
        """Give a client no more messages of a type in this run, since it has killed workers."""
        self._quarantined[key, message_type] = f"{_BARRED} {reason}"

    def forget_before(self, key: str, version: int) -> None:
        """Keep no older state of a client than this one: with many clients two versions of all would not fit."""
        self._states.forget_before(key, version)

    def state_of(self, key: str, version: int) -> State:
        """Return a client's state of a version as tensors."""
        state = self._states.get(key, version)
        return {} if state is None else self.read_state(state)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Run all messages' clients, and yield the replies as they come; the time limit is the experiment's."""
        sent = {self._keys[message.metadata.dst_node_id]: message for message in messages}
        barred = {key: reason for key, message in sent.items() if (reason := self._reason_against(key, message))}
        yield from (failure(sent[key], reason) for key, reason in barred.items())
        # Without them in no other chunk: the others' bits are those of a round in which these were asked.
        sound = ([task for task in unit if task[1] not in barred] for unit in units(sent, self._experiment))
        for key, reply, state in self.run_units([unit for unit in sound if unit]):
            if state is not None and not reply.has_error():
                self._states.put(key, number(header_of(sent[key].content), "round"), state)
            yield reply

    def _reason_against(self, key: str, message: Message) -> str:
        return self._quarantined.get((key, message.metadata.message_type), "")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the messages' clients, and keep the replies for :meth:`pull_messages`."""
        names = []
        for reply in self.send_and_receive(messages):
            names.append(f"reply-{next(self._numbers)}")
            self._replies[names[-1]] = reply
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies with these ids, once."""
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes, one per client."""
        return list(self._keys)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def set_run(self, run: Any) -> None:  # noqa: ANN401 - Flower's type is not public
        """Do nothing: a simulation is one run."""

    @property
    def run(self) -> Any:  # noqa: ANN401
        """Flower's run information, which a simulation has none of."""
        raise RunError("a simulation's grid has no run information")

    def state_for(self, message: Message, key: str) -> S | None:
        """Return the state from which a message wants its client to begin; None before its first round."""
        return self._states.get(key, number({"version": 0, **header_of(message.content)}, "version"))


def units(messages: Mapping[str, Message], experiment: Experiment) -> list[Unit]:
    """Divide messages, by client key, into units that one worker runs at a time: the chunks of the plan.

    They come in the order of their first keys, since replies wait for those of all keys before theirs.
    """
    chunks = [chunk for cohort in plan(experiment, messages) for chunk in cohort.chunks]
    return [[(messages[key], key) for key in chunk] for chunk in sorted(chunks, key=min)]
