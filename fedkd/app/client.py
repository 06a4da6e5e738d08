"""The client side of a run: turn messages into a strategy's client half, and its result into replies.

One function serves Flower's ClientApp, which brings one message at a time, and our own grids, which bring many.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count

from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedkd import seeding
from fedkd.app.introduction import agreed, introduction, libraries
from fedkd.app.state import State, digest, expect_storable, flatten, model_tensors, other_tensors
from fedkd.app.wire import (
    COMMON,
    EXTRA,
    HEADER,
    PAYLOAD,
    Header,
    expect_records,
    expect_sealed,
    header_of,
    knowledge_of,
    number,
    pack,
    sealed,
    to_arrays,
)
from fedkd.config import Experiment
from fedkd.data.federation import Federation, build
from fedkd.flower_internals import ensure_task_identity
from fedkd.knowledge import KnowledgeError
from fedkd.knowledge.codecs import codecs_named
from fedkd.learner.base import ClientCard, card_of
from fedkd.learner.client import Client
from fedkd.learner.executor import lockstep, one_by_one
from fedkd.learner.model import Model, fresh, in_order
from fedkd.learner.requests import Answer, Ask, Request
from fedkd.strategy import Strategy
from fedkd.strategy.base import expect_payload, expect_tensors, model_specs
from fedkd.strategy.registry import create
from fedkd.wording import traceback_of

TRAIN, EVALUATE, HELLO = "train", "evaluate", "query.hello"
FAILED = 0  # Flower's code for an error without a meaning of its own


@dataclass(frozen=True)
class ClientTask:
    """One message to one client.

    Attributes:
        message: train, evaluate or hello.
        key: the client's name.
        state: the client's state at the version that the message names; None before its first round.
    """

    message: Message
    key: str
    state: State | None


@dataclass(frozen=True)
class Outcome:
    """What a task leads to.

    Attributes:
        reply: what is sent to the server: a result, or an error with the client's traceback.
        state: the client's state after training, under the round's version; None if it did not change.
    """

    reply: Message
    state: State | None = None


class ClientSide:
    """All that a process needs to act for any client of an experiment; built once per process."""

    def __init__(self, experiment: Experiment, federation: Federation | None = None) -> None:
        """Load the data and the strategy, and pin what would change the bits.

        Args:
            experiment: what is run.
            federation: as this process sees it, where that is not what the experiment alone makes of it.
        """
        seeding.pin_arithmetic(experiment.engine.threads)
        ensure_task_identity()
        self.experiment = experiment
        self.federation = build(experiment) if federation is None else federation
        self.strategy = create(experiment)
        self.up = codecs_named(experiment.communication.up, "communication.up")
        self.down = codecs_named(experiment.communication.down, "communication.down")
        self.executor = lockstep if experiment.engine.plan == "cohorts" else one_by_one

    def handle(self, tasks: Sequence[ClientTask]) -> list[Outcome]:
        """Do tasks of one message type, together if the plan says so; a client that fails fails alone."""
        actions: dict[str, Callable[[ClientTask, Ask], Outcome]] = {
            TRAIN: self._train,
            EVALUATE: self._evaluate,
            HELLO: self._hello,
        }
        type_ = tasks[0].message.metadata.message_type
        execute = one_by_one if type_ == HELLO else self.executor  # who says hello asks for nothing
        results = execute([partial(actions[type_], task) for task in tasks])
        return [_outcome(task, result) for task, result in zip(tasks, results, strict=True)]

    def _train(self, task: ClientTask, ask: Ask) -> Outcome:
        header = _header(task)
        client = self._client(task, header, ask)
        seeding.seed_everything(client.seed)
        if task.state is None:
            self.strategy.client_setup(client)
        knowledge = self.strategy.client_round(client, knowledge_of(task.message.content, self.down))
        if knowledge is not None or not self.strategy.card.up_is_optional:
            expect_payload("client_round", knowledge, self.strategy.card.up)
        expect_tensors("client.state", client.state)
        state = dict(sorted(flatten(client.models, client.state).items()))  # the order in which a checkpoint has it
        expect_storable(state)
        reply: Header = {
            "round": client.round,
            "client": task.key,
            "num-samples": client.card.num_samples,
            "steps": client.steps,
            "state": digest(state),
        }
        if task.state is None and header.get("version"):
            reply["afresh"] = True  # its state is lost, and its owner has said that it may go on without
        return Outcome(_reply(task, pack(reply, knowledge, codecs=self.up)), state)

    def _evaluate(self, task: ClientTask, ask: Ask) -> Outcome:
        header = _header(task)
        client = self._client(task, header, ask)
        seeding.seed_everything(seeding.derive_seed(client.seed, "evaluate"))
        scores: Header = {"round": client.round, "client": task.key}
        test, local = self.federation.test(client.card.view), self.federation.local_test(task.key)
        logits = self.strategy.client_predict(client, test)
        scores |= {
            f"global/{name}": value for name, value in self.federation.task.evaluate(logits, test.labels).items()
        }
        if len(local):
            values = self.federation.task.evaluate(self.strategy.client_predict(client, local), local.labels)
            scores |= {f"local/{name}": value for name, value in values.items()}
        records = pack(scores)
        if has_ensemble(self.strategy):
            records[EXTRA] = to_arrays({"logits": logits})
        return Outcome(_reply(task, records))

    def _hello(self, task: ClientTask, ask: Ask) -> Outcome:
        """Say who takes part, with what: the server refuses what does not fit."""
        _header(task)
        own = introduction(self.federation, self.strategy, task.key)
        records = pack({**own, **libraries()})
        records[COMMON] = self._common
        return Outcome(_reply(task, records))

    @cached_property
    def _common(self) -> ConfigRecord:
        """What all clients of this process say alike: thousands of them need it made only once."""
        return sealed(agreed(self.experiment, self.federation, self.strategy))

    def _client(self, task: ClientTask, header: Header, ask: Ask) -> Client:
        card, round_ = card_of(self.federation, task.key), number(header, "round")
        seed = seeding.derive_seed(self.experiment.seed, "round", round_, task.key)
        # A copy: a client half that changes a tensor in place must find the old one when its task runs again.
        state = task.state and {name: t.to(self.federation.like.device, copy=True) for name, t in task.state.items()}
        return Client(
            models=self.models(card, state),
            state=other_tensors(state or {}),
            round=round_,
            seed=seed,
            train=self.experiment.train,
            ask=_on_its_own_seeds(ask, seeding.derive_seed(seed, task.message.metadata.message_type)),
            card=card,
            federation=self.federation,
        )

    def models(self, card: ClientCard, state: State | None) -> dict[str, Model]:
        """Return a client's models as its state has them, or freshly initialised if there is none yet."""
        models: dict[str, Model] = {}
        for name, spec in model_specs(self.strategy, self.federation, card).items():
            if state is None:
                seed = seeding.derive_seed(self.experiment.seed, "model", card.key, name)
                models[name] = fresh(spec, seed, self.federation.like)
            else:
                models[name] = Model(spec, in_order(spec, model_tensors(state, name)))
        return models


def _on_its_own_seeds(ask: Ask, seed: int) -> Ask:
    """Seed the global generators after each request: while it is answered, other clients of this process may draw."""
    numbers = count(1)

    def asked(request: Request) -> Answer:
        try:
            return ask(request)
        finally:
            seeding.seed_everything(seeding.derive_seed(seed, "after request", next(numbers)))

    return asked


def client_models(experiment: Experiment, states: Mapping[str, State | None]) -> dict[str, dict[str, Model]]:
    """Return the models in clients' states, by client key and model name."""
    side = ClientSide(experiment)
    return {key: side.models(card_of(side.federation, key), state) for key, state in states.items()}


def has_ensemble(strategy: Strategy) -> bool:
    """Whether the strategy has a teacher ensemble to be evaluated."""
    return type(strategy).ensemble is not Strategy.ensemble


def _header(task: ClientTask) -> Header:
    """Return a message's header, if the message is as the server sent it."""
    records = task.message.content
    header = header_of(records)
    expect_sealed(header)
    if header.get("client", task.key) != task.key:
        raise KnowledgeError(f"message: expected one for {task.key}, found one for {header['client']!r:.80}")
    expect_records(records, HEADER, *([PAYLOAD] if header.get("kind") else []))
    return header


def _outcome(task: ClientTask, result: Outcome | Exception) -> Outcome:
    if isinstance(result, Outcome):
        return result
    return Outcome(failure(task.message, traceback_of(result)))


def failure(message: Message, reason: str) -> Message:
    """Return the reply of a client that could not do what a message asks for."""
    return Message(Error(code=FAILED, reason=reason), reply_to=message)


def _reply(task: ClientTask, records: RecordDict) -> Message:
    return Message(records, reply_to=task.message)
