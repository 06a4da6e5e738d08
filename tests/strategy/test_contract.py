"""Every strategy keeps the contract, and the contract notices those that do not."""

import os
from collections.abc import Callable
from typing import Any, ClassVar, final

import pytest
import torch
from pydantic import Field

from fedkd import Experiment, losses, simulate
from fedkd.knowledge import ClassLogits, Generator, Knowledge, Prototypes
from fedkd.strategy import (
    Client,
    ClientCard,
    MethodCard,
    Replies,
    Server,
    Strategy,
    StrategySettings,
    contract,
    registry,
)

TEMPLATE = "strategies._template:Template"
STRATEGIES = [*registry.names(), TEMPLATE]


@pytest.mark.parametrize("check", contract.STATIC_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_is_written_as_agreed(strategy: str, check: Callable[..., None]) -> None:
    check(strategy)


@pytest.mark.parametrize("check", contract.RUNNING_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_runs_as_agreed(strategy: str, check: Callable[..., None]) -> None:
    check(strategy, simulate)


def test_the_built_ins_are_among_them() -> None:
    built_in = {"centralized", "fd", "fedavg", "feddf", "fedmd", "fedproto", "fml", "local", "public_only"}
    assert built_in <= set(STRATEGIES)


# --- each check can fail: one sound strategy, and versions of it that are wrong in one respect each

CARD: dict[str, Any] = {"title": "T", "authors": "A", "year": 2020, "traffic": "4Cd + 8C"}
EXCHANGE = MethodCard(**CARD, up=Prototypes, down=Prototypes)


class Sound(Strategy):
    """Clients train, and exchange prototypes that nobody uses."""

    card = EXCHANGE

    def client_round(self, client: Client, received: Prototypes | None) -> Knowledge:
        """Train."""
        client.fit(client.private, losses.cross_entropy)
        return Prototypes.of(client.features(client.private), client.private.labels, client.classes)

    def server_round(self, server: Server, replies: Replies) -> Knowledge | None:
        """Average, without looking."""
        means, counts = (torch.stack([getattr(r.knowledge, name) for r in replies]) for name in ("means", "counts"))
        return Prototypes((means * counts[..., None]).sum(0) / counts.sum(0).clamp(min=1)[:, None], counts.sum(0))


def shift(client: Client, amount: float) -> None:
    """Change a client's weights by a number that should not be there."""
    student = client.models["student"]
    moved = {name: t + amount if t.is_floating_point() else t for name, t in student.tensors.items()}
    client.models["student"] = student.with_tensors(moved)


class SendsSomethingElse(Sound):
    """Its card says class logits."""

    card = MethodCard(**CARD, up=ClassLogits, down=Prototypes)


class ReceivesSomethingElse(Sound):
    """Its card says class logits."""

    card = MethodCard(**CARD, up=Prototypes, down=ClassLogits)


class NeverSendsDown(Sound):
    """Its card says that prototypes come down."""

    def server_round(self, server: Server, replies: Replies) -> None:
        """Forget them."""


class KeepsOnSelf(Sound):
    """State on self is lost in another process."""

    def server_round(self, server: Server, replies: Replies) -> Knowledge | None:
        """Remember the replies in the wrong place."""
        self.last = replies
        return super().server_round(server, replies)


class TrainsInSecret(Sound):
    """Its card says that the server trains nothing."""

    def server_model(self, client: ClientCard) -> str:
        """Return the client's own."""
        return client.architecture

    def server_round(self, server: Server, replies: Replies) -> Knowledge | None:
        """Train one."""
        server.fit(server.pooled("image"), losses.cross_entropy, models=list(server.models))
        return super().server_round(server, replies)


class FailsForOneClient(Sound):
    """One client fails in round two."""

    def client_round(self, client: Client, received: Prototypes | None) -> Knowledge:
        """Fail."""
        if client.card.key == "client-2" and client.round == 2:
            raise ZeroDivisionError("client-2 divides by zero")
        return super().client_round(client, received)


class WantsAPublicSet(Sound):
    """Its card says that it needs none."""

    def client_round(self, client: Client, received: Prototypes | None) -> Knowledge:
        """Use it all the same."""
        client.next_public_subset.inputs.max()
        return super().client_round(client, received)


class SharesAGenerator(Sound):
    """Which numbers a client draws then depends on who drew before it in this process."""

    generator: ClassVar = torch.Generator().manual_seed(0)

    def client_round(self, client: Client, received: Prototypes | None) -> Knowledge:
        """Draw after the training."""
        reply = super().client_round(client, received)
        shift(client, float(torch.rand((), generator=self.generator)))
        return reply


class ChangesItsSamples(Sound):
    """Other clients, or later rounds, train on what is left of them."""

    def client_round(self, client: Client, received: Prototypes | None) -> Knowledge:
        """Add noise behind torch's back."""
        client.private.inputs.detach().mul_(0.99)
        return super().client_round(client, received)


class ChangesThePublicSamples(Sound):
    """Other clients label what is left of them."""

    card = MethodCard(**CARD, up=Prototypes, down=Prototypes, needs_public_set=True)

    def client_round(self, client: Client, received: Prototypes | None) -> Knowledge:
        """Normalise them through NumPy."""
        inputs = client.next_public_subset.inputs.numpy()
        inputs -= inputs.mean()
        return super().client_round(client, received)


class IsNeverTheSame(Sound):
    """Randomness without a seed."""

    def client_round(self, client: Client, received: Prototypes | None) -> Knowledge:
        """Shift by what the system draws."""
        shift(client, os.urandom(1)[0] + 256 * os.urandom(1)[0])
        return super().client_round(client, received)


class IsAlwaysTheSame(Sound):
    """Nothing of the seed gets through."""

    def client_round(self, client: Client, received: Prototypes | None) -> Knowledge:
        """Set everything to zero."""
        student = client.models["student"]
        client.models["student"] = student.with_tensors({n: torch.zeros_like(t) for n, t in student.tensors.items()})
        zeros = torch.zeros(client.classes, 64, dtype=torch.float64)
        return Prototypes(zeros, torch.zeros(client.classes, dtype=torch.int64))


class NeedsAllReplies(Sound):
    """Index instead of key."""

    def server_round(self, server: Server, replies: Replies) -> Knowledge | None:
        """Look at the fourth."""
        assert replies[3]
        return super().server_round(server, replies)


class ClientsInfluenceEachOther(Sound):
    """Something that all clients of a process share."""

    seen: ClassVar[list[str]] = []

    def client_round(self, client: Client, received: Prototypes | None) -> Knowledge:
        """Count the clients so far."""
        self.seen.append(client.card.key)
        shift(client, len(self.seen))
        return super().client_round(client, received)


class BreaksWithFewReplies(Sound):
    """The server's models are spoilt when a client is missing."""

    def server_model(self, client: ClientCard) -> str:
        """Return the client's own."""
        return client.architecture

    def server_round(self, server: Server, replies: Replies) -> Knowledge | None:
        """Divide by zero."""
        for name, model in server.models.items():
            factor = 1.0 if len(replies) == 4 else torch.nan
            server.models[name] = model.with_tensors({key: t * factor for key, t in model.tensors.items()})
        return super().server_round(server, replies)


class RemembersRefusedReplies(Sound):
    """What a refused client said reaches the server by another way."""

    said: ClassVar[list[float]] = []

    def client_round(self, client: Client, received: Prototypes | None) -> Knowledge:
        """Tell the server behind everybody's back."""
        if client.round == 1:
            self.said.append(1.0)
        return super().client_round(client, received)

    def server_round(self, server: Server, replies: Replies) -> Knowledge | None:
        """Use it."""
        server.state["said"] = torch.tensor(self.said)
        if server.round == 2:
            self.said.clear()
        return super().server_round(server, replies)


class WantsClientZero(Sound):
    """One client is taken for granted."""

    def server_round(self, server: Server, replies: Replies) -> Knowledge | None:
        """Look for it."""
        assert {reply.client.key: reply for reply in replies}["client-0"]
        return super().server_round(server, replies)


class WantsOneArchitecture(Sound):
    """Its card does not say so."""

    def client_round(self, client: Client, received: Prototypes | None) -> Knowledge:
        """Look into the model."""
        assert client.models["student"].tensors["features.1.weight"].shape == (128, 64)
        return super().client_round(client, received)


class LearnsNothing(Sound):
    """No training at all."""

    def client_round(self, client: Client, received: Prototypes | None) -> Knowledge:
        """Report the untrained features."""
        return Prototypes.of(client.features(client.private), client.private.labels, client.classes)


class EvaluatesNothing(Sound):
    """No model anywhere."""

    card = MethodCard(title="T", authors="A", year=2020)

    def client_models(self, client: ClientCard) -> dict[str, str]:
        """Return none."""
        return {}

    def server_round(self, server: Server, replies: Replies) -> None:
        """Do nothing."""


WRONG: list[tuple[Callable[..., None], type[Strategy], str]] = [
    (
        contract.check_travels_what_the_card_says,
        SendsSomethingElse,
        "client_round: the card says ClassLogits, found Prot",
    ),
    (
        contract.check_travels_what_the_card_says,
        ReceivesSomethingElse,
        "download: the card says ClassLogits, found Prototypes",
    ),
    (contract.check_travels_what_the_card_says, NeverSendsDown, "last round, down: the card says Prototypes, counted"),
    (
        contract.check_travels_what_the_card_says,
        KeepsOnSelf,
        r"keeps nothing on self but its settings, found self.last",
    ),
    (contract.check_travels_what_the_card_says, TrainsInSecret, "server_training is false"),
    (contract.check_travels_what_the_card_says, FailsForOneClient, "round 2: clients failed: client-2(?s:.)*by zero"),
    (contract.check_travels_what_the_card_says, WantsAPublicSet, "ended early"),
    (contract.check_plans_agree, SharesAGenerator, "features.*: the plans differ by"),
    (contract.check_is_deterministic, IsNeverTheSame, "the same seed gave other bits"),
    (contract.check_is_deterministic, IsAlwaysTheSame, "two seeds gave the same bits"),
    (contract.check_survives_a_failing_client, NeedsAllReplies, "ended early: (?s:.)*IndexError"),
    (contract.check_survives_a_failing_client, ClientsInfluenceEachOther, "bits depend on whether client-1 fails"),
    (contract.check_survives_a_failing_client, BreaksWithFewReplies, "is not finite after the server's half"),
    (contract.check_refuses_nan, RemembersRefusedReplies, "left a trace"),
    (contract.check_some_clients_at_a_time, WantsClientZero, "ended early: (?s:.)*KeyError"),
    (contract.check_takes_mixed_clients, WantsOneArchitecture, "mixed clients failed: client-0"),
    (contract.check_leaves_the_samples_alone, ChangesItsSamples, "client-0's training samples have been changed"),
    (contract.check_leaves_the_samples_alone, ChangesThePublicSamples, "the public samples have been changed"),
    (contract.check_learns, LearnsNothing, "chance is 0.1"),
    (contract.check_learns, EvaluatesNothing, "neither clients nor the server"),
]


@pytest.mark.parametrize("check", contract.RUNNING_CHECKS, ids=lambda check: check.__name__)
def test_a_sound_strategy_passes(check: Callable[..., None]) -> None:
    check(Sound, simulate)


@pytest.mark.parametrize(("check", "strategy", "text"), WRONG, ids=lambda item: getattr(item, "__name__", ""))
def test_a_fault_is_found(check: Callable[..., None], strategy: type[Strategy], text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        check(strategy, simulate)


def test_a_nan_that_gets_through_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prototypes, "check", lambda self, contract: None)
    with pytest.raises(AssertionError, match="is not finite after the server's half"):
        contract.check_refuses_nan(Sound, simulate)


def test_the_checks_take_any_function_that_runs_an_experiment() -> None:
    asked = []

    def recording(experiment: Experiment) -> contract.Ran:
        asked.append((experiment.engine.plan, experiment.federation.participation))
        return simulate(experiment)

    contract.check_some_clients_at_a_time("local", recording)
    assert asked == [("one-by-one", 0.5), ("cohorts", 0.5)]


# --- what can be seen without running


def with_card(card: object) -> type[Strategy]:
    """Return the sound strategy with another card."""
    return type("Carded", (Sound,), {"card": card})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"title": " "}, "title and authors"),
        ({"authors": ""}, "title and authors"),
        ({"year": 20}, "card.year: .*found 20"),
        ({"arxiv": "arXiv:1910.03581"}, "card.arxiv: .*found 'arXiv:1910.03581'"),
        ({"up": Knowledge}, "card.up: expected one of .*SoftLabels"),
        ({"down": torch.Tensor}, "card.down: expected one of .*SoftLabels"),
        ({"traffic": "0"}, "card.traffic: '0' contradicts"),
        ({"up": None, "down": None}, "card.traffic: '4Cd . 8C' contradicts"),
        ({"needs_public_labels": True}, "needs a public set"),
        ({"deviations": "no augmentation"}, "a tuple of one needs a comma"),
        ({"deviations": ("",)}, "card.deviations"),
    ],
    ids=str,
)
def test_a_fault_in_the_card_is_found(change: dict[str, Any], text: str) -> None:
    contract.check_card(with_card(EXCHANGE))
    values = {**CARD, "up": Prototypes, "down": Generator, **change}
    with pytest.raises(AssertionError, match=text):
        contract.check_card(with_card(MethodCard(**values)))


def test_a_missing_card_is_found() -> None:
    with pytest.raises(AssertionError, match="expected a MethodCard"):
        contract.check_card(with_card({"title": "T"}))


class Undescribed(StrategySettings):
    """A field that nobody can understand."""

    weight: float = 1.0


class WithoutDefault(StrategySettings):
    """A field that a user would have to set."""

    weight: float = Field(description="weight")


class OutOfRange(StrategySettings):
    """A default that its own range excludes."""

    weight: float = Field(0.0, gt=0, description="weight")


class NotFromToml(StrategySettings):
    """TOML has lists, and no tuples: a strict tuple cannot be set."""

    sizes: tuple[int, ...] = Field((1, 2), description="sizes")


class Thawed(StrategySettings, frozen=False):
    """Settings that may change during a run."""

    weight: float = Field(1.0, description="weight")


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (Undescribed, "Settings.weight: expected a description"),
        (WithoutDefault, "Settings.weight: expected a default"),
        (OutOfRange, "do not come back from TOML: Settings: weight"),
        (NotFromToml, "do not come back from TOML: Settings: sizes"),
        (Thawed, "must stay frozen"),
        (dict, "must derive from"),
    ],
)
def test_a_fault_in_the_settings_is_found(schema: type, text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        contract.check_settings(type("Set", (Sound,), {"Settings": schema}))


@final
class OverridesAnother(Sound):
    """Variation by overriding."""


@final
class Unfinished(Strategy):
    """A method without a server half."""

    def client_round(self, client: Client, received: None) -> None:
        """Do nothing."""


def test_a_fault_in_the_class_is_found() -> None:
    undocumented = final(type("Undocumented", (Strategy,), {**vars(Sound), "__doc__": None}))
    for strategy, text in (
        (Sound, "typing.final"),
        (OverridesAnother, r"not by overriding \['Sound'\]"),
        (Unfinished, r"methods are missing: \['server_round'\]"),
        (undocumented, "docstrings"),
    ):
        with pytest.raises(AssertionError, match=text):
            contract.check_class(strategy)


def test_a_probe_does_not_change_a_run() -> None:
    for name in ("fml", "fd"):
        plain = simulate(contract.experiment(name)).digest
        settings = {contract.PROBE: {"of": name, "fault": "none"}}
        probed = contract.experiment(name).model_copy(update={"strategy": contract.PROBE, "strategies": settings})
        assert simulate(probed).digest == plain
