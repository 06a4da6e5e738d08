"""The server side of a run: greet the clients, and turn rounds of messages into knowledge, metrics and a digest.

:class:`ServerSide` makes messages and takes replies, and leaves the sending to its caller: our own loop, or a
foreign Flower ServerApp (see ``as_flower``).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from flwr.app import Message, RecordDict

from fedkd import seeding
from fedkd.app import presence
from fedkd.app.arrivals import Arrivals, OnCounted, in_order, too_few
from fedkd.app.checkpoint import Snapshot
from fedkd.app.client import HELLO, TRAIN
from fedkd.app.history import ClientRecord, RoundRecord
from fedkd.app.introduction import agreed
from fedkd.app.presence import NOBODY, NOT_THERE, Presence
from fedkd.app.roster import Answers, Participant, described, read_answers, roster_of
from fedkd.app.state import digest, flatten, lasting, new_run_id
from fedkd.app.told import TOLD
from fedkd.app.validation import Claim, Expectation, read_reply
from fedkd.app.wire import Packed, pack, payload_bytes
from fedkd.checks import all_finite
from fedkd.config import Experiment
from fedkd.data.federation import build
from fedkd.errors import RunError
from fedkd.flower_internals import ensure_task_identity
from fedkd.knowledge import Contract, Knowledge, KnowledgeError, Weights
from fedkd.knowledge.codecs import codecs_named
from fedkd.learner.fit import answer
from fedkd.learner.model import layout
from fedkd.learner.server import Reply, Server
from fedkd.strategy.base import Strategy, check_fits, expect_knowledge, expect_payload, expect_tensors, payload_type
from fedkd.strategy.registry import create
from fedkd.wording import traceback_of

T = TypeVar("T")


class ServerSide:
    """The server of one run.

    Attributes:
        experiment: what is run.
        roster: who takes part, by client key, in sorted order; filled by :meth:`welcome`.
        server: models and state, as the strategy sees them.
        digest: state digest of the run so far, chained from round to round.
        run_id: name of the run, under which clients keep their states.
        arrivals: which replies count.
        presence: which of the clients are there, as far as :meth:`look` has seen.
        kept: the versions of the clients' states, by client key, in each checkpoint that a server may go on from.
    """

    def __init__(
        self, experiment: Experiment, run_id: str = "", on_counted: OnCounted = lambda key, round_: None
    ) -> None:
        """Load the public data and the strategy, and refuse an experiment that the strategy cannot run.

        Args:
            experiment: what is run.
            run_id: name of the run that is gone on with; a new one without.
            on_counted: called with client key and round as soon as a client's new state counts.
        """
        seeding.pin_arithmetic(experiment.engine.threads)
        ensure_task_identity()
        self.experiment = experiment
        self.federation = build(experiment)
        self.strategy = create(experiment)
        check_fits(self.strategy, experiment, self.federation)
        self._up = codecs_named(experiment.communication.up, "communication.up")
        self._down = codecs_named(experiment.communication.down, "communication.down")
        self.roster: dict[str, Participant] = {}
        self.server = Server({}, {}, 0, self._seed(0), experiment.train, answer, {}, self.federation)
        self.digest = ""
        self._common: Knowledge | None = None
        self._state_digests: dict[str, str] = {}
        self.run_id = run_id or new_run_id()
        self.arrivals = Arrivals(on_counted)
        self.presence = Presence()
        self.kept: Sequence[Mapping[str, int]] = ()
        self._drawn: list[str] = []
        self._public_ids = self.federation.splits.public
        self._sent: dict[str, int] = {}

    @property
    def versions(self) -> dict[str, int]:
        """Round of the last reply that counts, by client key: the version of that client's state."""
        return self.arrivals.counted[TRAIN]

    # -- hello ----------------------------------------------------------------------------------------------------

    def hello_messages(self, node_ids: Iterable[int]) -> list[Message]:
        """Ask every node who it is, all with the same records."""
        records = self._records({"round": 0})
        return [self._addressed(records, node_id, HELLO) for node_id in sorted(node_ids)]

    def welcome(self, replies: Iterable[Message], start: Snapshot | None = None) -> None:
        """Learn who takes part, and prepare the server.

        Args:
            replies: to :meth:`hello_messages`.
            start: where an earlier process came to; its server was set up, and is not set up again. Who took part
                then takes part now, be it absent.

        Raises:
            RunError: nobody can take part.
        """
        if start is not None and start.roster:
            self.roster = {key: replace(known, node_id=NOBODY) for key, known in start.roster.items()}
            self.presence = Presence(absent=set(self.roster))
            self.take_back(replies)
        else:
            answers = self._answers(replies)
            self.roster = roster_of(answers, self.federation)
            self.presence = presence.greeted(answers, self.roster)
            for line in described(self.roster):
                TOLD.info("takes part: %s", line)
        self.server.clients = {key: participant.said.card for key, participant in self.roster.items()}
        self.strategy.check_clients(list(self.server.clients.values()))
        with self.server_half("setup"):
            self.server.start_students(self.strategy.server_model)
            if start is None:
                self.strategy.server_setup(self.server)
        if start is not None:
            self.server = replace(
                self.server, models=dict(start.models), state=dict(start.state), round=start.record.round
            )
            self._common, self.digest = start.common, start.record.digest
            self.arrivals.go_on(start.versions)
            self._state_digests = dict(start.state_digests)
            self.kept = [{}, start.versions]  # the checkpoint before is still there: whatever it asks for must stay

    def look(self, node_ids: Iterable[int]) -> list[Message]:
        """See which nodes are there before a round begins, and greet those that have come back, or are new."""
        messages = self.hello_messages(presence.look(self.presence, self.roster, node_ids))
        self.presence.asked |= {message.metadata.dst_node_id for message in messages}
        return messages

    def take_back(self, replies: Iterable[Message]) -> None:
        """Let absent clients take part again that have come back, at whatever node.

        Args:
            replies: to the messages of :meth:`look`, and what else has come meanwhile.
        """
        answers = self._answers(replies)
        self.roster = presence.take_back(self.presence, self.roster, answers)

    def _answers(self, replies: Iterable[Message]) -> Answers:
        return read_answers(self.arrivals.sorted_out(HELLO, replies), self._agreed, self.federation, self.strategy)

    @cached_property
    def _agreed(self) -> dict[str, Any]:
        """What every party must say alike: every round looks who is there, and this takes milliseconds."""
        return agreed(self.experiment, self.federation, self.strategy)

    # -- train ----------------------------------------------------------------------------------------------------

    def train_messages(self, round_: int) -> list[Message]:
        """Start a round: draw the participants, and send each what it is to learn from."""
        self.server = replace(self.server, round=round_, seed=self._seed(round_))
        self._public_ids = self.federation.public_subset(round_)
        messages: list[Message] = []
        self._sent = {}
        self.arrivals.begin_round(len(self.presence.unfit))
        self.presence.unfit = set()
        packed: Packed = {}
        self._drawn = self._participants(round_)
        for key, download in self._downloads(key for key in self._drawn if key not in self.presence.absent):
            messages.append(self.message_to(self.roster[key].node_id, TRAIN, self.header_for(key), download, packed))
            _count(self._sent, download, messages[-1])
        return messages

    def _downloads(self, keys: Iterable[str]) -> Iterator[tuple[str, Knowledge | None]]:
        """Yield what each client receives; a method that chooses it in its own way does so on a seed for each."""
        draws = type(self.strategy).download is not Strategy.download
        for key in keys:
            with self.server_half(f"download {key}") if draws else self._blamed_on_the_strategy():
                download = self.strategy.download(self.server, self.server.clients[key], self._common)
                if download is not None:
                    expect_payload("download", download, self.strategy.card.down)
            yield key, download

    def take_replies(self, messages: Iterable[Message], replies: Iterable[Message]) -> RoundRecord:
        """Check the replies of a round, and let the strategy turn them into knowledge.

        Raises:
            RunError: no reply is usable, or too few are.
        """
        received: dict[str, int] = {}
        accepted: dict[str, Claim] = {}  # without what they carry, which is the strategy's to keep or to sum up
        failed = {key: NOT_THERE for key in self._drawn if key in self.presence.absent}

        def read(message: Message, key: str) -> Reply[Any] | None:
            claim = read_reply(message, self._expectation(key))
            _count(received, claim.knowledge, message)
            accepted[key] = claim._replace(knowledge=None)
            return None if claim.knowledge is None else Reply(self.roster[key].said.card, claim.knowledge)

        def usable() -> Iterator[Reply[Any]]:
            asked = [key for key in self._drawn if key not in failed]
            try:
                arrivals = self.claims(TRAIN, messages, replies, read, failed)
                yield from (reply for reply in in_order(asked, arrivals) if reply is not None)
                if len(accepted) < min(self._fewest_replies, len(accepted) + len(failed)):
                    raise RunError(too_few(self.server.round, len(accepted), self._fewest_replies, failed))
            except Exception as error:
                broken.append(error)
                raise

        broken: list[Exception] = []
        try:
            with self.server_half("collect"):
                # Not the generator itself: what the method, or a generator of its own, lets go of would close it.
                coming = map(_itself, usable())
                collected = self.strategy.collect(self.server, coming)
                collected = list(collected) if isinstance(collected, Iterator) else collected
                deque(coming, maxlen=0)  # also what the method left unread is checked and counted
        except RunError:
            if not broken:
                raise
        if broken:  # the replies stopped coming, or are too few: no fault of the strategy's, nor for it to hide
            raise broken[0] from None
        self._state_digests |= {key: claim.state for key, claim in accepted.items()}
        with self.server_half("round"):
            common = self.strategy.server_round(self.server, collected)
            expect_knowledge("server_round", common)
            expect_tensors("server.state", self.server.state)
        self._keep(common)
        self._tell_of_silence()
        self._expect_finite()
        self._chain_digest()
        steps = {key: claim.steps for key, claim in sorted(accepted.items())}
        afresh = [key for key, claim in sorted(accepted.items()) if claim.afresh]
        for key in afresh:
            TOLD.warning("round %d: %s has begun anew: its state was lost", self.server.round, key)
        record = RoundRecord(self.server.round, 0.0, steps, failed, received, dict(self._sent), self.digest)
        return replace(record, refused=dict(self.arrivals.refused), afresh=afresh)

    def claims(
        self,
        phase: str,
        messages: Iterable[Message],
        replies: Iterable[Message],
        read: Callable[[Message, str], T],
        failed: dict[str, str],
    ) -> Iterator[tuple[str, T]]:
        """Yield client key and words of each reply to these messages that counts (see :meth:`Arrivals.claims`)."""
        here = (item for item in self.roster.items() if item[0] not in self.presence.absent)
        nodes = {participant.node_id: key for key, participant in here}
        asked = {message.metadata.dst_node_id: nodes[message.metadata.dst_node_id] for message in messages}
        return self.arrivals.claims(phase, self.server.round, asked, replies, read, failed)

    def _expectation(self, key: str) -> Expectation:
        card, settings = self.roster[key].said.card, self.experiment.federation
        student = self.server.student_names.get(key)
        contract = Contract(
            classes=len(self.federation.classes),
            feature_width=settings.feature_width,
            public_ids=self._public_ids,
            weights=layout(self.server.models[student].spec, self.federation.like.dtype) if student else {},
        )
        return Expectation(
            client=key,
            round=self.server.round,
            num_samples=card.num_samples,
            kind=self.strategy.card.up,
            contract=contract,
            dtype=self.federation.like.dtype,
            optional=self.strategy.card.up_is_optional,
            codecs=self._up,
        )

    # -- what lasts -----------------------------------------------------------------------------------------------

    def snapshot(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> Snapshot:
        """Return what a new server needs to go on after this round (see :meth:`welcome`).

        Args:
            record: of this round.
            clients: from the last evaluation.
        """
        return Snapshot(
            record,
            clients,
            dict(self.server.models),
            dict(self.server.state),
            self._common,
            dict(self.versions),
            dict(self._state_digests),
            dict(self.roster),
        )

    # -- small things ---------------------------------------------------------------------------------------------

    @contextmanager
    def server_half(self, purpose: str) -> Iterator[None]:
        """Run a piece of the strategy's server half, on its own seed: a mistake ends the run, with its traceback."""
        seeding.seed_everything(seeding.derive_seed(self.server.seed, purpose))
        with self._blamed_on_the_strategy():
            yield

    @contextmanager
    def _blamed_on_the_strategy(self) -> Iterator[None]:
        try:
            yield
        except RunError:
            raise
        except (Exception, SystemExit) as error:
            what = f"round {self.server.round}: the strategy's server half failed."
            raise RunError(f"{what}\n{traceback_of(error)}") from error

    def _participants(self, round_: int) -> list[str]:
        keys = [key for key, participant in sorted(self.roster.items()) if participant.said.models]
        source = seeding.generator(self.experiment.seed, "participants", round_)
        drawn = torch.randperm(len(keys), generator=source)[: self.experiment.federation.taking_part(len(keys))]
        return sorted(keys[k] for k in drawn.tolist())

    def _tell_of_silence(self) -> None:
        """Say that a method gives its clients nothing though its card says so: that may be a forgotten return."""
        kind, usual = payload_type(self.strategy.card.down), type(self.strategy).download is Strategy.download
        if self._common is None and usual and kind not in (None, Weights):
            what = self.server.round, kind.__name__ if kind else ""
            TOLD.warning("round %d: server_round returned nothing, so no client receives the card's %s", *what)

    def _keep(self, common: Knowledge | None) -> None:
        """Keep what a round leaves as a checkpoint would: the next one finds the same, gone on with or not."""
        models = {name: model.with_tensors(lasting(model.tensors)) for name, model in self.server.models.items()}
        self.server = replace(self.server, models=models, state=lasting(self.server.state))
        self._common = None if common is None else type(common).from_tensors(lasting(common.to_tensors()))

    def _expect_finite(self) -> None:
        """Stop before a result that is no number is sent to everybody."""
        common = {} if self._common is None else self._common.to_tensors()
        for name, tensor in {**flatten(self.server.models, self.server.state), **common}.items():
            if not all_finite(tensor):
                what = f"round {self.server.round}: {name} is not finite after the server's half"
                raise RunError(f"{what}; lower the learning rate, or look for a client that sends nonsense.")

    def _chain_digest(self) -> None:
        """The run's digest: all that the server holds and sends, and the states of all clients, round after round."""
        common = {} if self._common is None else self._common.to_tensors()
        states = [f"{key} {value}" for key, value in sorted(self._state_digests.items())]
        self.digest = digest(self.digest, flatten(self.server.models, self.server.state), common, *states)

    def _seed(self, round_: int) -> int:
        return seeding.derive_seed(self.experiment.seed, "round", round_, "server")

    def header_for(self, key: str) -> dict[str, Any]:
        """Return what a client must know: the round, the state to start from, and the oldest that it must keep."""
        state, version = self._state_digests.get(key, ""), self.versions.get(key, 0)
        oldest = min((versions.get(key, 0) for versions in self.kept), default=version)
        keep = {"keep": oldest} if oldest < version else {}
        return {"round": self.server.round, "client": key, "version": version, "state": state, **keep}

    @property
    def _fewest_replies(self) -> int:
        """As many as would be asked if only the fewest clients took part that the experiment demands."""
        settings = self.experiment.federation
        return settings.taking_part(settings.min_clients or 1)

    def message_to(
        self,
        node_id: int,
        message_type: str,
        header: Mapping[str, Any],
        knowledge: Knowledge | None = None,
        packed: Packed | None = None,
    ) -> Message:
        """Return a message of this run and round to a node.

        Raises:
            RunError: what it is to carry cannot be coded.
        """
        return self._addressed(self._records(header, knowledge, packed), node_id, message_type)

    def _records(
        self, header: Mapping[str, Any], knowledge: Knowledge | None = None, packed: Packed | None = None
    ) -> RecordDict:
        try:
            return pack({"run": self.run_id, **header}, knowledge, packed, self._down)
        except KnowledgeError as error:
            what = f"round {self.server.round}: what the clients are to receive cannot be coded: {error}"
            raise RunError(f"{what}; change communication.down.") from error

    def _addressed(self, records: RecordDict, node_id: int, message_type: str) -> Message:
        return Message(records, dst_node_id=node_id, message_type=message_type, group_id=str(self.server.round))


def _itself(value: T) -> T:
    return value


def _count(total: dict[str, int], knowledge: Knowledge | None, message: Message) -> None:
    """Add the bytes of a message's payload to those of its kind."""
    if knowledge is not None:
        kind = type(knowledge).__name__
        total[kind] = total.get(kind, 0) + payload_bytes(message.content)
