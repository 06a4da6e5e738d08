"""What a method is: a card, settings, a client half and a server half."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, ClassVar, Self, final

from torch import Tensor

from fedkd.config import Experiment, StrategySettings
from fedkd.data.federation import Federation
from fedkd.data.samples import Samples
from fedkd.errors import UserError
from fedkd.knowledge import Bundle, Knowledge, Weights
from fedkd.knowledge.codecs import codecs_named, expect_suited
from fedkd.learner.base import ClientCard, OnView, card_of
from fedkd.learner.client import Client
from fedkd.learner.server import Reply, Server
from fedkd.models import ModelSpec, skeleton

LOG = logging.getLogger("fedkd")

Replies = Sequence[Reply[Any]]
Payload = type[Knowledge] | Mapping[str, type[Knowledge]]


def payload_type(payload: Payload | None) -> type[Knowledge] | None:
    """Return the type of what travels: a bundle where a card names its parts."""
    return Bundle if isinstance(payload, Mapping) else payload


def expect_payload(where: str, knowledge: object, payload: Payload | None) -> None:
    """Refuse to send what a card does not announce.

    Args:
        where: the method that returned it.
        knowledge: what it returned.
        payload: what the card says.

    Raises:
        TypeError: the one is not of the type of the other.
    """
    said, found = _describe(payload), _describe(knowledge.parts if isinstance(knowledge, Bundle) else knowledge)
    if said != found:
        raise TypeError(f"{where}: the card says {said}, found {found}")


def expect_knowledge(where: str, knowledge: object) -> None:
    """Refuse what cannot be sent, such as a bare tensor.

    Raises:
        TypeError: it is neither knowledge nor None.
    """
    if not isinstance(knowledge, Knowledge | None):
        raise TypeError(
            f"{where}: expected knowledge, such as server.soft_labels(...), or None, found {_describe(knowledge)}"
        )


def expect_tensors(where: str, state: Mapping[str, object]) -> None:
    """Refuse a state that cannot be kept.

    Raises:
        TypeError: something in it is not a tensor.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{where}[{name!r}]: expected a tensor, found {type(value).__name__}; wrap it in torch.tensor"
            )


def _describe(payload: object) -> str:
    """Name the type of a payload, given itself, its type, or the parts of a bundle."""
    if isinstance(payload, Mapping):
        return "{" + ", ".join(f"{name}: {_describe(part)}" for name, part in sorted(payload.items())) + "}"
    kind = payload if isinstance(payload, type) else type(payload)
    return kind.__name__.removesuffix("Type")


@dataclass(frozen=True)
class MethodCard:
    """Facts about one published method; tables in README and ``fedkd list`` are made from it.

    Attributes:
        title: title of the paper.
        authors: as cited.
        year: of publication.
        arxiv: identifier, empty if there is none.
        up: what a client sends each round, or the parts of a bundle by name; None if nothing travels.
        down: what a client receives.
        traffic: bytes per client and round, as a formula (``M`` public samples, ``C`` classes, ``d`` feature width,
            ``P`` parameters; four bytes per number, eight per id); empty if not stated, or if nothing travels.
        up_is_optional: whether a client may send nothing in a round, as one that only learns does.
        needs_public_set: whether clients must see a public set.
        needs_public_labels: whether it must be labelled.
        heterogeneous_models: whether clients may differ in architecture.
        server_training: whether the server trains a model of its own.
        simulation_only: whether it needs what no real server has, such as pooled private data.
        deviations: how this module differs from paper or official code, one sentence each.
    """

    title: str
    authors: str
    year: int
    arxiv: str = ""
    up: Payload | None = None
    down: Payload | None = None
    traffic: str = ""
    up_is_optional: bool = False
    needs_public_set: bool = False
    needs_public_labels: bool = False
    heterogeneous_models: bool = True
    server_training: bool = False
    simulation_only: bool = False
    deviations: Sequence[str] = field(default=())


class Strategy(ABC):
    """One published method.

    A subclass is final and stands in a module of its own: card and settings first, then the client half, which runs in
    a worker or behind a SuperNode, then the server half. It keeps nothing on ``self`` but its settings: whatever lasts
    from round to round is in ``client.models``, ``client.state``, ``server.models`` and ``server.state``.
    """

    card: ClassVar[MethodCard]
    Settings: ClassVar[type[StrategySettings]] = StrategySettings

    def __init__(self, settings: StrategySettings | None = None) -> None:
        """Take the settings, or all defaults."""
        self.settings: Any = settings or self.Settings()

    @final
    def sealed(self) -> Self:
        """Return this strategy, which from now on refuses to keep anything on ``self``.

        Raises:
            UserError: it keeps something already, or has a property that would.
        """
        kept = {name for name in vars(self) if name not in {"settings", *self._watched}}
        kept |= {name for kind in type(self).__mro__ for name, value in vars(kind).items() if _caches(value)}
        if kept:
            raise UserError(f"{_keeps_nothing(self, sorted(kept)[0])}; compute it where it is needed.")
        self._sealed = True
        return self

    @final
    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401
        """Set an attribute while the strategy is built; later it would be another one in every process."""
        if "_sealed" in vars(self):
            raise AttributeError(f"{_keeps_nothing(self, name)}; keep tensors in client.state or server.state.")
        super().__setattr__(name, value)

    _watched: ClassVar[frozenset[str]] = frozenset()  # for tests: a strategy that holds another one

    def check_clients(self, clients: Sequence[ClientCard]) -> None:  # noqa: B027 - most methods work with any
        """Refuse clients among whom these settings have no sense, such as a teacher that nobody is.

        Args:
            clients: all of the federation, in the order of their keys.

        Raises:
            UserError: says which setting does not fit, and what to do.
        """

    # -- client half --------------------------------------------------------------------------------------------------

    def client_models(self, client: ClientCard) -> Mapping[str, str | OnView]:
        """Return the architectures of a client's models, by model name; one model ``student`` unless overridden.

        A model sees the client's view, unless it is told another one: ``OnView(architecture, view)``.
        """
        return {"student": client.architecture}

    def client_setup(self, client: Client) -> None:  # noqa: B027 - most methods have no set-up phase
        """Prepare a client, once, before its first round (FedMD's transfer phase, for one)."""

    @abstractmethod
    def client_round(self, client: Client, received: Any) -> Knowledge | None:  # noqa: ANN401 - the card names the type
        """Do one client's part of a round.

        Args:
            client: the client; its models and state last from round to round.
            received: what the server sent, of the type that the card names; None if it sent nothing.

        Returns:
            What the client sends; None if nothing travels.
        """

    def client_predict(self, client: Client, samples: Samples) -> Tensor:
        """Return a client's logits ``(N, C)`` at evaluation; those of its student unless overridden."""
        return client.logits(samples)

    # -- server half --------------------------------------------------------------------------------------------------

    def server_model(self, client: ClientCard) -> str | None:
        """Return the architecture of the server's student for a client; None, unless overridden: it has none.

        The house starts one such student for each view, sends its weights where the card's ``down`` says so, holds
        uploaded weights against it, and evaluates it.
        """
        return None

    def server_setup(self, server: Server) -> None:  # noqa: B027 - most methods have nothing to prepare
        """Prepare the server, once, before round one, when its students have been started."""

    def collect(self, server: Server, replies: Iterator[Reply[Any]]) -> Any:  # noqa: ANN401 - the method decides
        """Take in the replies of a round as they come; they are all kept, unless a method sums them up on the way.

        Args:
            server: the server, to look at: replies are still coming, so it is not yet to be changed.
            replies: what the clients sent, checked, in the order of their keys.

        Returns:
            What :meth:`server_round` is given.
        """
        return list(replies)

    @abstractmethod
    def server_round(self, server: Server, replies: Any) -> Knowledge | None:  # noqa: ANN401 - see collect
        """Turn the replies of a round into knowledge.

        Args:
            server: the server; its models and state last from round to round.
            replies: what the clients sent, checked, in the order of their keys; or what :meth:`collect` made of them.

        Returns:
            What every client receives in the next round, unless :meth:`download` gives each its own; None for nothing.
        """

    def download(self, server: Server, client: ClientCard, common: Knowledge | None) -> Knowledge | None:
        """Return what one client receives: its student's weights if the card says so, else the common knowledge.

        Args:
            server: the server.
            client: the receiver.
            common: what :meth:`server_round` returned in the last round; None before round one.
        """
        return server.weights(server.student_of(client)) if self.card.down is Weights else common

    def ensemble(self, logits: Tensor, clients: Sequence[ClientCard]) -> Tensor | None:
        """Combine the clients' logits to the teacher ensemble's, for evaluation, as the server combines them to teach.

        Args:
            logits: outputs of ``K`` clients on the same samples, shape ``(K, N, C)``.
            clients: the ``K`` clients.

        Returns:
            The ensemble's logits, shape ``(N, C)``; None if there is no ensemble.
        """
        return None


def model_specs(strategy: Strategy, federation: Federation, client: ClientCard) -> dict[str, ModelSpec]:
    """Return the specifications of a client's models, by model name."""
    models = _on_views(strategy, client)
    return {name: federation.model_spec(model.architecture, model.view) for name, model in models.items()}


def _on_views(strategy: Strategy, client: ClientCard) -> dict[str, OnView]:
    return {
        name: model if isinstance(model, OnView) else OnView(model, client.view)
        for name, model in strategy.client_models(client).items()
    }


def _caches(value: object) -> bool:
    return isinstance(value, cached_property)


def _keeps_nothing(strategy: Strategy, name: str) -> str:
    return f"{type(strategy).__name__}: a strategy keeps nothing on self but its settings, found self.{name}"


def check_fits(strategy: Strategy, experiment: Experiment, federation: Federation) -> None:
    """Refuse an experiment that a strategy cannot run.

    Args:
        strategy: what the experiment runs.
        experiment: the experiment; its federation may be shared with others and does not know the strategy.
        federation: built from the experiment.

    Raises:
        UserError: says what the strategy needs and which key to change.
    """
    card = strategy.card
    _check_codecs(strategy, experiment)
    _check_models(strategy, experiment, federation)
    _tell_of_views(strategy, experiment, federation)
    settings = experiment.federation
    own = settings.partition == "own"
    held = [(holding.architecture, holding.view) for holding in federation.holdings.values()]
    cohorts = set(product(settings.architectures, settings.views)) if own else set(held)
    needs = f"strategy {experiment.strategy!r} needs"
    if card.needs_public_set and not len(federation.splits.public):
        raise UserError(f"data.public: {needs} a public set, found none; set data.public above 0.")
    if card.needs_public_labels and not experiment.data.public_labels:
        raise UserError(f"data.public_labels: {needs} a labelled public set, found an unlabelled one; set it to true.")
    if not card.heterogeneous_models and len(cohorts) > 1:
        found = f"found {len(cohorts)} kinds of clients"
        raise UserError(f"federation.architectures: {needs} one architecture and one view for all clients, {found}.")
    if card.simulation_only and own:
        found = "found 'own', where no other party has them"
        raise UserError(f"federation.partition: {needs} all clients' samples, {found}; choose another strategy.")
    if card.simulation_only and experiment.engine.name != "local":
        raise UserError(f"engine.name: {needs} our own engine, found {experiment.engine.name!r}; set it to 'local'.")
    if not own:  # otherwise the server asks again when all have said who they are
        strategy.check_clients([card_of(federation, key) for key in federation.holdings])


def _check_codecs(strategy: Strategy, experiment: Experiment) -> None:
    card, settings = strategy.card, experiment.communication
    for where, texts, payload in (("up", settings.up, card.up), ("down", settings.down, card.down)):
        key = f"communication.{where}"
        codecs = codecs_named(texts, key)
        if payload is None and codecs:  # a baseline that shares nothing may stand beside others in one comparison
            _tell(f"{key}: strategy {experiment.strategy!r} sends nothing there, its codecs are not used.")
        elif payload is not None:
            kinds = payload.values() if isinstance(payload, Mapping) else [payload]
            expect_suited(codecs, kinds, key, f"strategy {experiment.strategy!r}")


def _check_models(strategy: Strategy, experiment: Experiment, federation: Federation) -> None:
    """Refuse an architecture that cannot take the view that it is given, and say which setting names it.

    Once for each kind of clients, not for each client: there may be ten thousand.
    """
    kinds = {(held.architecture, held.view): key for key, held in federation.holdings.items()}
    for client in (card_of(federation, key) for key in kinds.values()):
        on_server = OnView(strategy.server_model(client) or client.architecture, client.view)
        for name, model in [*_on_views(strategy, client).items(), ("", on_server)]:
            if name in type(strategy.settings).model_fields:  # such as strategies.fml.meme
                key = f"strategies.{experiment.strategy}.{name}"
            elif model.architecture == client.architecture:
                key = "federation.architectures"
            else:
                key = f"strategy {experiment.strategy!r}"
            try:
                skeleton(federation.model_spec(model.architecture, model.view))
            except UserError as error:
                raise UserError(f"{key}: view {model.view!r}: {error}") from error


def _tell_of_views(strategy: Strategy, experiment: Experiment, federation: Federation) -> None:
    """Say what of an experiment's views, and of its only round, comes to nothing: it may serve other strategies."""
    settings, name = experiment.federation, repr(experiment.strategy)
    clients = list(federation.holdings.values())
    for key, given, dealt in (
        ("views", settings.views, {held.view for held in clients}),
        ("architectures", settings.architectures, {held.architecture for held in clients}),
    ):
        if left := [each for each in dict.fromkeys(given) if each not in dealt] if clients else []:
            nobody = f"nobody is dealt {', '.join(map(repr, left))}, with federation.clients = {len(clients)}"
            _tell(f"federation.{key}: {nobody}; raise that, or leave out what nobody is dealt.")
    card = ClientCard("", settings.architectures[0], settings.views[0], 0)
    has_teacher = strategy.client_models(card) != strategy.client_models(replace(card, teacher_view="another"))
    if has_teacher and settings.teacher_view is None:
        _tell(f"federation.teacher_view: not set, so the teacher of strategy {name} sees each client's own view.")
    if settings.teacher_view is not None and not has_teacher:
        _tell(f"federation.teacher_view: strategy {name} has no teacher that sees {settings.teacher_view!r}.")
    if experiment.rounds == 1 and strategy.card.down is not None:
        _tell(f"rounds: with only 1, no client of strategy {name} receives what others sent; set 2 or more.")


@lru_cache
def _tell(text: str) -> None:
    """Warn once in a process, however often an experiment is checked."""
    LOG.warning("%s", text)
