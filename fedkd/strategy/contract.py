"""What every strategy must keep to, as functions that fail with a clear text: built-ins and yours are held to the same.

A strategy is given by name, as an object reference ``package.module:Class``, or as its class. The checks in
:data:`STATIC_CHECKS` take it alone; those in :data:`RUNNING_CHECKS` also take the function that runs an experiment,
``fedkd.simulate`` or one like it. A test file of your own needs no more than this::

    import pytest
    from fedkd import simulate
    from fedkd.strategy import contract

    @pytest.mark.parametrize("check", contract.STATIC_CHECKS)
    def test_my_method_is_written_as_agreed(check):
        check("my_method")

    @pytest.mark.parametrize("check", contract.RUNNING_CHECKS)
    def test_my_method_runs_as_agreed(check):
        check("my_method", simulate)

The runs are small (four clients, some dozens of real digits each), in float64 and by plain gradient descent. A strategy
that needs a public set gets one, one that needs its labels gets them, and any other gets neither. Settings named
``..._epochs`` are lowered to 1, so that rounding has no time to grow, except where it is asked whether it learns.
"""

import inspect
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import tomli_w
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fedkd.checks import all_finite
from fedkd.config import Experiment, StrategySettings, parse, validate
from fedkd.data.federation import Federation, build
from fedkd.data.samples import Samples
from fedkd.errors import UserError
from fedkd.knowledge import KINDS
from fedkd.strategy._probe import PROBE, expect, kind_name, name_of
from fedkd.strategy.base import MethodCard, Payload, Strategy, payload_type
from fedkd.strategy.registry import find

PLANS = ("one-by-one", "cohorts")
PLANS_AGREE_WITHIN = 1e-9
CHANCE = 0.1
"""Accuracy of guessing one of ten digits."""

_ARXIV = re.compile(r"\d{4}\.\d{4,5}")
_FIRST_YEAR = 1950


class Ran(Protocol):
    """What the checks look at in the result of a run (``fedkd.Result`` has it)."""

    @property
    def rounds(self) -> Sequence[Mapping[str, Any]]:
        """One record per round, as in ``rounds.jsonl``."""

    @property
    def client_models(self) -> Mapping[str, Mapping[str, nn.Module]]:
        """Trained models by client key and model name."""

    @property
    def server_models(self) -> Mapping[str, nn.Module]:
        """Trained models by name."""

    @property
    def digest(self) -> str:
        """The run's state digest."""


class Simulate(Protocol):
    """A function that runs an experiment."""

    def __call__(self, experiment: Experiment, /) -> Ran:
        """Run it."""


# --- what can be seen without running it


def check_class(strategy: str | type[Strategy]) -> None:
    """A strategy is documented, final, and derived from no other strategy than abstract ones."""
    found = _class_of(strategy)
    module = inspect.getmodule(found)
    expect(bool(found.__dict__.get("__final__")), found, "the class must be marked with typing.final")
    expect(not found.__abstractmethods__, found, f"methods are missing: {sorted(found.__abstractmethods__)}")
    expect(bool(found.__doc__) and bool(module and module.__doc__), found, "class and module need docstrings")
    concrete = [b for b in found.__mro__[1:] if issubclass(b, Strategy) and not inspect.isabstract(b)]
    expect(not concrete, found, f"methods vary by composition, not by overriding {[b.__name__ for b in concrete]}")


def check_card(strategy: str | type[Strategy]) -> None:
    """A method card is complete and does not contradict itself."""
    found = _class_of(strategy)
    card = getattr(found, "card", None)
    expect(isinstance(card, MethodCard), found, "card: expected a MethodCard")
    assert isinstance(card, MethodCard)  # noqa: S101 - said to the type checker, established above
    expect(bool(card.title.strip() and card.authors.strip()), found, "card: title and authors must be given")
    expect(card.year >= _FIRST_YEAR, found, f"card.year: expected the year of publication, found {card.year}")
    arxiv = not card.arxiv or _ARXIV.fullmatch(card.arxiv)
    expect(bool(arxiv), found, f"card.arxiv: expected an identifier such as 1910.03581, found {card.arxiv!r}")
    for way, kind in (("up", card.up), ("down", card.down)):
        parts = kind.values() if isinstance(kind, Mapping) else [kind]
        known = kind is None or all(part in KINDS.values() for part in parts)
        expect(known, found, f"card.{way}: expected one of {', '.join(sorted(KINDS))} or None, found {kind!r}")
    silent = card.up is None and card.down is None
    contradicts = card.traffic not in {"", "0"} if silent else card.traffic == "0"
    expect(not contradicts, found, f"card.traffic: {card.traffic!r} contradicts card.up and card.down")
    public = card.needs_public_set or not card.needs_public_labels
    expect(public, found, "card: who needs public labels needs a public set")
    listed = not isinstance(card.deviations, str) and all(str(text).strip() for text in card.deviations)
    expect(listed, found, "card.deviations: expected a tuple of sentences; a tuple of one needs a comma")


def check_settings(strategy: str | type[Strategy]) -> None:
    """Settings have defaults within their own ranges, a description each, come through TOML, and are frozen."""
    found = _class_of(strategy)
    schema = found.Settings
    expect(issubclass(schema, StrategySettings), found, "Settings must derive from fedkd.strategy.StrategySettings")
    frozen = schema.model_config.get("frozen") and schema.model_config.get("extra") == "forbid"
    expect(bool(frozen), found, "Settings must stay frozen, and forbid unknown keys")
    for name, field in schema.model_fields.items():
        expect(bool(field.description), found, f"Settings.{name}: expected a description in Field(...)")
        expect(not field.is_required(), found, f"Settings.{name}: expected a default")
    try:
        defaults = schema()
        values = {name: value for name, value in defaults.model_dump(mode="json").items() if value is not None}
        again = validate(schema, tomllib.loads(tomli_w.dumps(values)), where="Settings")
    except (ValidationError, ValueError, TypeError) as error:
        raise AssertionError(f"{name_of(found)}: Settings: the defaults do not come back from TOML: {error}") from error
    expect(again == defaults, found, f"Settings: expected {defaults!r} back from TOML, found {again!r}")


# --- what shows in a run


def check_travels_what_the_card_says(strategy: str | type[Strategy], simulate: Simulate) -> None:
    """Two rounds under both plans: nobody fails, and what travels and who trains is what the card says."""
    card = _class_of(strategy).card
    for plan in PLANS:
        rounds = _run(strategy, simulate, {"engine.plan": plan}, fault="none").rounds
        for record in rounds:
            where = f"{plan}, round {record['round']}"
            expect(not record["failed"], strategy, f"{where}: clients failed: {_first(record['failed'])}")
            if record["participants"]:
                _expect_bytes(strategy, f"{where}, up", card.up, record["bytes_up"])
        if rounds[-1]["participants"]:
            _expect_bytes(strategy, f"{plan}, last round, down", card.down, rounds[-1]["bytes_down"])


def check_plans_agree(strategy: str | type[Strategy], simulate: Simulate) -> None:
    """Clients trained one by one and in cohorts end at the same weights, to rounding; also with mixed clients."""
    mixes: list[Mapping[str, Any]] = [{}]
    if _class_of(strategy).card.heterogeneous_models:
        mixes.append(MIXED)
    for mix in mixes:
        one, other = (_run(strategy, simulate, {**mix, "engine.plan": plan}) for plan in PLANS)
        for (name, a), (_, b) in zip(_tensors(one), _tensors(other), strict=True):
            apart = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
            text = f"{name}: the plans differ by {apart:.1e}; random numbers that are not client.generator's?"
            expect(apart <= PLANS_AGREE_WITHIN, strategy, text)


def check_is_deterministic(strategy: str | type[Strategy], simulate: Simulate) -> None:
    """The same seed gives the same bits under either plan; another seed gives others."""
    for plan in PLANS:
        first, again, other = (
            _run(strategy, simulate, {"engine.plan": plan, "seed": seed}).digest for seed in (1, 1, 2)
        )
        expect(first == again, strategy, f"{plan}: the same seed gave other bits: {first[:8]} and {again[:8]}")
        expect(first != other, strategy, f"{plan}: two seeds gave the same bits: is anything trained?")


def check_survives_a_failing_client(strategy: str | type[Strategy], simulate: Simulate) -> None:
    """A client that fails costs its own round: it is named, the others keep their bits, and it comes back."""
    for plan in PLANS:
        with_all = _run(strategy, simulate, {"rounds": 1, "engine.plan": plan}, fault="none")
        if not with_all.rounds[0]["participants"]:
            return
        without = _run(strategy, simulate, {"rounds": 1, "engine.plan": plan}, fault="raise")
        _expect_failure(strategy, without, f"{plan}: a client that raises", "on purpose")
        for key, models in without.client_models.items():
            for name, model in models.items():
                same = _equal(model, with_all.client_models[key][name])
                expect(same, strategy, f"{plan}: {key}, {name}: its bits depend on whether {VICTIM} fails")
        longer = _run(strategy, simulate, {"engine.plan": plan}, fault="raise")
        expect(VICTIM in longer.rounds[1]["participants"], strategy, f"{plan}: {VICTIM} did not come back in round 2")
        _expect_finite(strategy, longer)


def check_refuses_nan(strategy: str | type[Strategy], simulate: Simulate) -> None:
    """A reply with a NaN costs that client's round, and leaves no trace: the run is as if the client had failed."""
    if _class_of(strategy).card.up is None:
        return
    for plan in PLANS:
        damaged = _run(strategy, simulate, {"engine.plan": plan}, fault="nan")
        _expect_failure(strategy, damaged, f"{plan}: a reply with a NaN", "finite")
        failed = _run(strategy, simulate, {"engine.plan": plan}, fault="raise")
        same = damaged.digest == failed.digest
        expect(same, strategy, f"{plan}: a refused reply left a trace in the run")


def check_some_clients_at_a_time(strategy: str | type[Strategy], simulate: Simulate) -> None:
    """Half of the clients take part in each round: some join late, some miss a round."""
    for plan in PLANS:
        changes = {"rounds": 4, "federation.participation": 0.5, "engine.plan": plan}
        records = _run(strategy, simulate, changes).rounds
        present = [tuple(record["participants"]) for record in records]
        if not any(present):
            return
        expect(all(len(keys) == CLIENTS // 2 for keys in present), strategy, f"{plan}: took part: {present}")
        expect(len(set(present)) > 1, strategy, f"{plan}: the same clients took part in all rounds: {present}")
        for record in records:
            expect(not record["failed"], strategy, f"{plan}: clients failed: {_first(record['failed'])}")


def check_takes_mixed_clients(strategy: str | type[Strategy], simulate: Simulate) -> None:
    """Two architectures, two views, and clients that hold both run together, if the card says that they may."""
    if not _class_of(strategy).card.heterogeneous_models:
        return
    for mix in (MIXED, JOINED):
        try:
            result = _run(strategy, simulate, mix)
        except UserError as error:  # a method may bring a model of its own that takes one view only, such as FML's
            expect(mix is JOINED and str(error).startswith(("strategies.", "strategy ")), strategy, str(error))
            continue
        for record in result.rounds:
            expect(not record["failed"], strategy, f"mixed clients failed: {_first(record['failed'])}")
        _expect_finite(strategy, result)


def check_leaves_the_samples_alone(strategy: str | type[Strategy], simulate: Simulate) -> None:
    """What all clients of a process share is as it was: whoever changes it changes what others train on."""
    for plan in PLANS:
        changes = {"engine.plan": plan, "data.public_per_round": 20}
        federation = build(experiment(strategy, changes))
        _run(strategy, simulate, changes)
        for what, view, found in _shared(federation):
            genuine = federation.samples(found.ids, view)
            same = torch.equal(found.inputs, genuine.inputs)
            same &= all(torch.equal(values, genuine.targets[name]) for name, values in found.targets.items())
            expect(same, strategy, f"{plan}: {what} have been changed in place; copy them first")


def _shared(federation: Federation) -> Iterator[tuple[str, str, Samples]]:
    """Yield all samples that clients are given, each with what they are and their view."""
    for key, holding in federation.holdings.items():
        yield f"{key}'s training samples", holding.view, federation.private(key)
        yield f"{key}'s test samples", holding.view, federation.local_test(key)
    for view in {holding.view for holding in federation.holdings.values()}:
        yield "the test samples", view, federation.test(view)
        for ids in (None, federation.public_subset(1), federation.public_subset(2)):
            yield "the public samples", view, federation.public(view, ids)


def check_learns(strategy: str | type[Strategy], simulate: Simulate) -> None:
    """The clients or the server do much better than by chance after three rounds with the strategy's own settings."""
    changes = {"strategies": {}, "rounds": 3, "train.optimizer": "adam", "train.lr": 0.005, "train.local_epochs": 5}
    metrics = _run(strategy, simulate, changes).rounds[-1]["metrics"]
    scores = [metrics[who]["accuracy"] for who in ("clients_global", "server_global") if metrics[who]]
    expect(bool(scores), strategy, "neither clients nor the server have a model that could be evaluated")
    expect(max(scores) > 3 * CHANCE, strategy, f"accuracies after three rounds: {scores}; chance is {CHANCE}")


STATIC_CHECKS: tuple[Callable[[str | type[Strategy]], None], ...] = (check_class, check_card, check_settings)
RUNNING_CHECKS: tuple[Callable[[str | type[Strategy], Simulate], None], ...] = (
    check_travels_what_the_card_says,
    check_plans_agree,
    check_is_deterministic,
    check_survives_a_failing_client,
    check_refuses_nan,
    check_some_clients_at_a_time,
    check_takes_mixed_clients,
    check_leaves_the_samples_alone,
    check_learns,
)


# --- the runs

CLIENTS = 4
VICTIM = "client-1"
MIXED: Mapping[str, Any] = {
    "federation.clients": 2 * CLIENTS,
    "federation.architectures": ["cnn-bn", "mlp"],
    "federation.views": ["image", "image", "image@4", "image@4"],
    "data.test": 1297,
}
"""Two clients of each architecture and view, with shards as large as otherwise."""
JOINED: Mapping[str, Any] = {
    "federation.views": ["image+image@4", "image@4"],
    "federation.missing": {"image@4": 0.3},
    "federation.teacher_view": "image",
}
"""Clients that hold two views, and lack one of a third of their samples, beside clients that hold one."""


def experiment(strategy: str | type[Strategy], changes: Mapping[str, Any] | None = None) -> Experiment:
    """Return the small experiment of the checks: two rounds of one or two steps each on ragged shards.

    Args:
        strategy: name, object reference or class.
        changes: dotted keys with values, such as ``{"engine.plan": "cohorts"}``.
    """
    found = _class_of(strategy)
    card, reference = found.card, _reference(strategy)
    base = {
        "strategy": reference,
        "strategies": {reference: _short(found.Settings)},
        "rounds": 2,
        "data": {
            "test": 1537,  # of 1,797: the rest makes shards of about 60, or 50 and a public set of 40
            "public": 40 if card.needs_public_set else 0,
            "public_labels": card.needs_public_labels,
            "local_test": 0.0,
        },
        "federation": {"clients": CLIENTS, "architectures": ["mlp"], "alpha": 3.0},
        "train": {"optimizer": "sgd", "lr": 0.05, "dtype": "float64", "batch_size": 48, "local_epochs": 1},
        "engine": {"evaluate_every": 0},
    }
    return parse(base, changes or {}, where="contract")


def _short(schema: type[StrategySettings]) -> dict[str, int]:
    """Return settings for short runs, if the strategy allows them."""
    long = {name: field.default for name, field in schema.model_fields.items() if name.endswith("_epochs")}
    short = {name: 1 for name, epochs in long.items() if isinstance(epochs, int) and epochs > 1}
    try:
        schema(**short)
    except ValidationError:
        return {}
    return short


def _run(
    strategy: str | type[Strategy], simulate: Simulate, changes: Mapping[str, Any], *, fault: str | None = None
) -> Ran:
    """Run the small experiment, inside a probe if a fault is named."""
    asked = experiment(strategy, changes)
    if fault is not None:
        own = asked.strategies[asked.strategy]
        settings = {"of": asked.strategy, "settings": own, "client": VICTIM, "fault": fault}
        asked = asked.model_copy(update={"strategy": PROBE, "strategies": {PROBE: settings}})
    try:
        return simulate(asked)
    except (AssertionError, UserError):
        raise
    except Exception as error:
        raise AssertionError(f"{name_of(strategy)}: the run ended early: {type(error).__name__}: {error}") from error


# --- small things


def _class_of(strategy: str | type[Strategy]) -> type[Strategy]:
    return find(strategy) if isinstance(strategy, str) else strategy


def _reference(strategy: str | type[Strategy]) -> str:
    return strategy if isinstance(strategy, str) else f"{strategy.__module__}:{strategy.__qualname__}"


def _first(failed: Mapping[str, str]) -> str:
    return next((f"{key}: {reason}" for key, reason in failed.items()), "nobody")


def _expect_bytes(
    strategy: str | type[Strategy], where: str, payload: Payload | None, counted: Mapping[str, int]
) -> None:
    kind = payload_type(payload)
    expected = {kind.__name__} if kind else set()
    right = set(counted) == expected and all(counted.values())
    expect(right, strategy, f"{where}: the card says {kind_name(kind)}, counted were {dict(counted)} bytes")


def _expect_failure(strategy: str | type[Strategy], result: Ran, what: str, reason: str) -> None:
    failed = result.rounds[0]["failed"]
    right = list(failed) == [VICTIM] and reason in failed[VICTIM]
    expect(right, strategy, f"{what} must cost its own round only; failed: {dict(failed)}")


def _expect_finite(strategy: str | type[Strategy], result: Ran) -> None:
    damaged = [name for name, tensor in _tensors(result) if not all_finite(tensor)]
    expect(not damaged, strategy, f"not finite after the run: {', '.join(damaged[:3])}")


def _equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _tensors(result: Ran) -> Iterable[tuple[str, Tensor]]:
    """Yield all tensors of all models, in the order of their names."""
    for name, model in sorted(result.server_models.items()):
        yield from ((f"server's {name}, {key}", tensor) for key, tensor in model.state_dict().items())
    for client, models in sorted(result.client_models.items()):
        for name, model in sorted(models.items()):
            yield from ((f"{client}'s {name}, {key}", tensor) for key, tensor in model.state_dict().items())
