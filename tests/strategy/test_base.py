"""What a strategy is unless it says otherwise, and which experiments are refused."""

from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from functools import cached_property
from typing import Any

import pytest
import torch
from pydantic import Field, ValidationError

from fedkd import simulate
from fedkd.config import Experiment
from fedkd.data.federation import build
from fedkd.errors import UserError
from fedkd.knowledge import Bundle, Knowledge, SoftLabels, Statistics, Weights
from fedkd.learner.base import OnView
from fedkd.learner.fit import answer
from fedkd.learner.model import fresh
from fedkd.strategy import Client, ClientCard, MethodCard, Replies, Server, Strategy, StrategySettings, base
from fedkd.strategy.base import check_fits, expect_payload, model_specs


class Plain(Strategy):
    """Only what must be written."""

    card = MethodCard(title="T", authors="A", year=2020)

    class Settings(StrategySettings):
        """One."""

        weight: float = Field(1.0, ge=0, description="weight")

    def client_round(self, client: Client, received: None) -> None:
        """Do nothing."""

    def server_round(self, server: Server, replies: Replies) -> Knowledge | None:
        """Do nothing."""


EXPERIMENT = Experiment(data={"test": 40, "public": 10}, federation={"clients": 2, "partition": "iid"})
CARD = ClientCard("client-0", "linear", "image", 5)


@pytest.fixture(autouse=True)
def _nothing_told_yet() -> None:
    base._tell.cache_clear()


def party(kind: type, **own: Any) -> Any:
    federation = build(EXPERIMENT)
    student = fresh(federation.model_spec("linear", "image"), 1, federation.like)
    common = {"models": {"student": student}, "state": {}, "round": 1, "seed": 1, "train": EXPERIMENT.train}
    return kind(**common, ask=answer, federation=federation, **own)


def test_settings_are_the_defaults_unless_given() -> None:
    assert Plain().settings == Plain.Settings(weight=1.0)
    assert Plain(Plain.Settings(weight=3.0)).settings.weight == 3.0
    with pytest.raises(ValidationError, match="frozen"):
        Plain().settings.weight = 2.0


def test_a_card_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Plain.card.year = 2021


def test_a_client_has_one_student_of_its_architecture() -> None:
    assert Plain().client_models(CARD) == {"student": "linear"}


def test_a_model_sees_the_clients_view_unless_it_is_told_another() -> None:
    class Two(Plain):
        def client_models(self, client: ClientCard) -> Mapping[str, str | OnView]:
            return {"student": client.architecture, "teacher": OnView("mlp", "image@4")}

    federation = build(Experiment())
    specs = model_specs(Two(), federation, CARD)
    assert {name: (spec.architecture, spec.input_shape) for name, spec in specs.items()} == {
        "student": ("linear", (1, 8, 8)),
        "teacher": ("mlp", (1, 4, 4)),
    }


def test_both_halves_must_be_written() -> None:
    for half in ("client_round", "server_round"):
        with pytest.raises(TypeError, match=half):
            type("Half", (Plain,), {half: getattr(Strategy, half)})()


def test_predictions_are_the_students_logits() -> None:
    client = party(Client, card=CARD)
    samples = client.federation.test("image")
    tensors = client.models["student"].tensors
    hidden = samples.inputs.flatten(1) @ tensors["features.1.weight"].T + tensors["features.1.bias"]
    expected = hidden @ tensors["head.weight"].T + tensors["head.bias"]
    torch.testing.assert_close(Plain().client_predict(client, samples), expected)


def test_the_server_sends_everyone_what_its_round_gave_and_has_no_model_of_its_own() -> None:
    server, knowledge = party(Server, clients={"client-0": CARD}), Weights({})
    assert Plain().download(server, CARD, knowledge) is knowledge
    assert Plain().download(server, CARD, None) is None
    assert Plain().server_model(CARD) is None
    assert Plain().ensemble(torch.zeros(2, 3, 4), [CARD, CARD]) is None


FITS = [
    ({"needs_public_set": True}, {"data.public": 0}, r"^data.public: strategy 'plain' needs a public set, found none"),
    (
        {"needs_public_set": True, "needs_public_labels": True},
        {},
        r"^data.public_labels: strategy 'plain' needs a labelled public set",
    ),
    (
        {"heterogeneous_models": False},
        {"federation.architectures": ["cnn", "mlp"]},
        r"^federation.architectures: .* one architecture and one view .*, found 2 kinds",
    ),
    ({"heterogeneous_models": False}, {"federation.views": ["image", "image@4"]}, "found 2 kinds"),
    (
        {"heterogeneous_models": False},
        {"federation.partition": "own", "federation.views": ["image", "image@4"]},
        "found 2 kinds",
    ),
    (
        {"simulation_only": True},
        {"federation.partition": "own"},
        r"^federation.partition: .* needs all clients' samples, found 'own', where no other party has them",
    ),
    ({"simulation_only": True}, {"engine.name": "flower"}, r"^engine.name: .* our own engine, found 'flower'"),
    (
        {"up": Weights},
        {"communication.up": ["class-index"]},
        r"^communication.up: 'class-index' codes SoftLabels, but strategy 'plain' exchanges Weights; leave it out",
    ),
    (
        {"up": SoftLabels, "down": {"a": Weights, "b": Statistics}},
        {"communication.up": ["top-k:3"], "communication.down": ["top-k:3"]},
        r"^communication.down: 'top-k' codes .* exchanges Weights and Statistics; leave it out",
    ),
]


@pytest.mark.parametrize(("card", "changes", "text"), FITS)
def test_what_a_strategy_cannot_run_is_refused(card: dict[str, Any], changes: dict[str, Any], text: str) -> None:
    def check(facts: dict[str, Any]) -> None:
        strategy = type("Picky", (Plain,), {"card": MethodCard(title="T", authors="A", year=2020, **facts)})()
        check_fits(strategy, asked, build(asked))

    asked = EXPERIMENT.changed(strategy="plain", **changes)
    check({})  # without the need the same experiment is fine
    with pytest.raises(UserError, match=text):
        check(card)


def test_a_wrong_codec_is_refused_even_where_nothing_travels() -> None:
    with pytest.raises(UserError, match=r"^communication\.down: unknown codec 'zip'"):
        check_fits(Plain(), EXPERIMENT.changed(**{"communication.down": ["zip"]}), build(EXPERIMENT))


def test_what_a_strategy_needs_and_has_is_accepted() -> None:
    needs = {"needs_public_set": True, "needs_public_labels": True, "heterogeneous_models": False}
    card = MethodCard(title="T", authors="A", year=2020, simulation_only=True, **needs)
    asked = EXPERIMENT.changed(**{"data.public_labels": True})
    check_fits(type("Content", (Plain,), {"card": card})(), asked, build(asked))


def test_a_run_that_does_not_fit_is_refused_before_it_starts() -> None:
    for strategy, changes, text in (
        ("public_only", {}, "strategy 'public_only' needs a labelled"),
        ("centralized", {"engine.name": "flower"}, "strategy 'centralized' needs our own engine"),
    ):
        with pytest.raises(UserError, match=text):
            simulate(EXPERIMENT.changed(strategy=strategy, **changes))


# -- nothing is kept on self


class Sealable(Strategy):
    card = MethodCard(title="T", authors="A", year=2026)
    kept: Any = None

    def client_round(self, client: Client, received: None) -> None:
        """Do nothing."""

    def server_round(self, server: Server, replies: Replies) -> None:
        """Do nothing."""


class KeepsAList(Sealable):
    def __init__(self, settings: StrategySettings | None = None) -> None:
        super().__init__(settings)
        self.seen: list[str] = []


class KeepsACache(Sealable):
    @cached_property
    def table(self) -> int:
        return 1


def test_a_sealed_strategy_refuses_what_it_would_lose() -> None:
    sealed = Sealable().sealed()
    with pytest.raises(
        AttributeError, match=r"a strategy keeps nothing on self but its settings, found self\.kept; keep"
    ):
        sealed.kept = 1
    assert sealed.kept is None


@pytest.mark.parametrize(("kind", "name"), [(KeepsAList, "seen"), (KeepsACache, "table")])
def test_what_could_keep_something_cannot_be_sealed(kind: type[Strategy], name: str) -> None:
    with pytest.raises(
        UserError, match=f"{kind.__name__}: a strategy keeps nothing on self .* found self.{name}; comp"
    ):
        kind().sealed()


# -- what may be sent


@pytest.mark.parametrize(
    ("knowledge", "payload", "text"),
    [
        (torch.ones(1), SoftLabels, "the card says SoftLabels, found Tensor"),
        (None, SoftLabels, "the card says SoftLabels, found None"),
        (Weights({}), None, "the card says None, found Weights"),
        (Bundle({"a": Weights({})}), {"b": Weights}, "the card says {b: Weights}, found {a: Weights}"),
        (Bundle({"a": Weights({})}), {"a": SoftLabels}, "the card says {a: SoftLabels}, found {a: Weights}"),
    ],
)
def test_only_what_the_card_says_is_sent(knowledge: object, payload: Any, text: str) -> None:
    with pytest.raises(TypeError, match=f"here: {text}"):
        expect_payload("here", knowledge, payload)


def test_what_the_card_says_is_sent() -> None:
    expect_payload("here", Weights({}), Weights)
    expect_payload("here", None, None)
    expect_payload("here", Bundle({"a": Weights({})}), {"a": Weights})


# -- views and architectures


class Taught(Plain):
    """With a teacher on the teacher's view, of an architecture that a setting names."""

    class Settings(StrategySettings):
        """One."""

        teacher: str | None = Field(None, description="architecture")

    def client_models(self, client: ClientCard) -> Mapping[str, str | OnView]:
        """Return student and teacher."""
        view = client.teacher_view or client.view
        return {"student": client.architecture, "teacher": OnView(self.settings.teacher or "mlp", view)}


@pytest.mark.parametrize(
    ("settings", "changes", "text"),
    [
        (
            {},
            {"federation.architectures": ["mlp", "vector"], "federation.views": ["image", "image@4"]},
            r"^federation\.architectures: view 'image@4': model 'vector': expected vectors .*, found input shape "
            r"\(1, 4, 4\); take one that can: cnn, .*, mlp, .*spectrogram-cnn\.$",
        ),
        (
            {"teacher": "signal-cnn"},
            {"federation.teacher_view": "image@2"},
            r"^strategies\.taught\.teacher: view 'image@2': model 'signal-cnn': expected signals .* found input shape "
            r"\(1, 2, 2\); take one that can: cnn, ",
        ),
        ({}, {"federation.architectures": ["cmm"]}, r"^federation\.architectures: view 'image': unknown model 'cmm'"),
    ],
)
def test_an_architecture_that_cannot_take_its_view_is_refused_by_the_setting_that_names_it(
    settings: dict[str, Any], changes: dict[str, Any], text: str
) -> None:
    asked = EXPERIMENT.changed(strategy="taught", **changes)
    with pytest.raises(UserError, match=text):
        check_fits(Taught(Taught.Settings(**settings)), asked, build(asked))


def test_a_strategys_own_architecture_that_no_setting_names_is_the_strategys() -> None:
    class Fixed(Plain):
        def client_models(self, client: ClientCard) -> Mapping[str, str | OnView]:
            return {"student": client.architecture, "other": "vector"}

    asked = EXPERIMENT.changed(strategy="fixed")
    with pytest.raises(UserError, match=r"^strategy 'fixed': view 'image': model 'vector': expected vectors"):
        check_fits(Fixed(), asked, build(asked))


DOWN = MethodCard(title="T", authors="A", year=2020, down=SoftLabels)


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        (Plain, {}, []),
        (Plain, {"rounds": 1}, []),
        (type("Sending", (Plain,), {"card": DOWN}), {"rounds": 2}, []),
        (
            type("Sending", (Plain,), {"card": DOWN}),
            {"rounds": 1},
            ["rounds: with only 1, no client of strategy 's' receives what others sent; set 2 or more."],
        ),
        (
            Plain,
            {"federation.teacher_view": "image@4"},
            ["federation.teacher_view: strategy 's' has no teacher that sees 'image@4'."],
        ),
        (Taught, {"federation.teacher_view": "image@4"}, []),
        (
            Taught,
            {},
            ["federation.teacher_view: not set, so the teacher of strategy 's' sees each client's own view."],
        ),
        (
            Plain,
            {"federation.views": ["image", "image@4", "image@2"], "federation.architectures": ["mlp", "mlp", "cnn"]},
            [
                "federation.views: nobody is dealt 'image@2', with federation.clients = 2; raise that, or leave out "
                "what nobody is dealt.",
                "federation.architectures: nobody is dealt 'cnn', with federation.clients = 2; raise that, or leave "
                "out what nobody is dealt.",
            ],
        ),
    ],
)
def test_what_comes_to_nothing_is_said_once(
    kind: type[Strategy], changes: dict[str, Any], expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    asked = EXPERIMENT.changed(strategy="s", **changes)
    for _ in range(2):
        check_fits(kind(), asked, build(asked))
    assert caplog.messages == expected


def test_codecs_of_a_strategy_that_sends_nothing_are_not_used_and_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    asked = EXPERIMENT.changed(strategy="plain", **{"communication.up": ["float16"]})
    strategy = type("Silent", (Plain,), {"card": MethodCard(title="T", authors="A", year=2020)})()
    check_fits(strategy, asked, build(asked))
    assert caplog.messages == ["communication.up: strategy 'plain' sends nothing there, its codecs are not used."]
    caplog.clear()
    check_fits(strategy, EXPERIMENT, build(EXPERIMENT))
    assert not caplog.messages
