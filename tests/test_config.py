"""The experiment file: what is accepted, what is refused in one line, and nothing lost on the way."""

import dataclasses
import math
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import Field, ValidationError

from fedkd.config import Experiment, StrategySettings, load, loads, parse, validate
from fedkd.errors import UserError

Check = Callable[[Any], bool]


# -- what the documentation promises, written down a second time


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number in a range; a bound is itself inside unless the range is open there."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __call__(self, value: Any) -> bool:
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below


def whole(low: int, high: float = math.inf) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def one_of(*names: str) -> Check:
    return lambda value: value in names if isinstance(value, str) else False


def text(value: Any) -> bool:
    return isinstance(value, str)


def texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, str) for item in value)


def codecs(value: Any) -> bool:
    return value == [] or texts(value)


def size(low: Number) -> Check:
    return lambda value: low(value) and (value < 1 or isinstance(value, int))


def folder(value: Any) -> bool:
    characters = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
    return isinstance(value, str) and value != "" and set(value) <= characters and value[0] not in ".-"


def table(value: Any) -> bool:
    return isinstance(value, dict) and not value


def tables(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, dict) for item in value.values())


def shares(value: Any) -> bool:
    return isinstance(value, dict) and all(Number(0, 1, open_high=True)(item) for item in value.values())


POSITIVE = Number(0, open_low=True)
VALID: Mapping[str, Check] = {
    "name": folder,
    "strategy": text,
    "seed": whole(0),
    "rounds": whole(1),
    "data": table,
    "federation": table,
    "train": table,
    "communication": table,
    "engine": table,
    "strategies": tables,
    "alone": lambda value: isinstance(value, bool),
    "data.name": text,
    "data.root": text,
    "data.download": lambda value: isinstance(value, bool),
    "data.public": size(Number(0)),
    "data.public_per_round": whole(0),
    "data.validation": size(Number(0)),
    "data.test": size(POSITIVE),
    "data.measure_on": one_of("test", "validation"),
    "data.public_labels": lambda value: isinstance(value, bool),
    "data.local_test": Number(0, 1, open_high=True),
    "data.split_by": one_of("sample", "group"),
    "federation.clients": whole(1),
    "federation.partition": one_of("iid", "dirichlet", "pathological", "natural", "own"),
    "federation.min_clients": whole(1),
    "federation.alpha": POSITIVE,
    "federation.classes_per_client": whole(1),
    "federation.min_samples": whole(0),
    "federation.architectures": texts,
    "federation.views": texts,
    "federation.teacher_view": text,
    "federation.missing": shares,
    "federation.participation": Number(0, 1, open_low=True),
    "federation.feature_width": whole(1),
    "train.local_epochs": whole(0),
    "train.batch_size": whole(1),
    "train.optimizer": one_of("sgd", "adam", "adamw"),
    "train.lr": POSITIVE,
    "train.momentum": Number(0, 1, open_high=True),
    "train.weight_decay": Number(0),
    "train.dtype": one_of("float32", "float64", "bf16-mixed"),
    "train.device": text,
    "communication.up": codecs,
    "communication.down": codecs,
    "engine.name": one_of("local", "flower"),
    "engine.workers": whole(0),
    "engine.address": text,
    "engine.gpus_per_worker": Number(0),
    "engine.plan": one_of("one-by-one", "cohorts"),
    "engine.cohort_size": whole(2),
    "engine.threads": whole(1, 1024),
    "engine.evaluate_every": whole(0),
    "engine.checkpoint_every": whole(0),
    "engine.timeout": POSITIVE,
    "engine.join_timeout": POSITIVE,
}
NEEDS = {
    "federation.min_clients": [f"federation.clients={2**70}"],
    "train.momentum": ["train.optimizer=sgd"],
    "engine.address": ["engine.workers=1"],
    "engine.gpus_per_worker": ["engine.workers=1"],
}
POOL: list[Any] = [
    True, False, -3, -1, 0, 1, 2, 7, 2**70, -0.5, 0.0, 0.5, 1.0, 1.5, 40.0, math.nan, math.inf, -math.inf,
    "", "a", "cnn", "iid", "adam", "one-by-one", "..", "-a", "a b", "a/b", "line\nbreak", "0", "inf", "float64",
    "local", "group", "validation",
    [], ["cnn"], ["a", "b"], [1], ["a", 2], [[]], {}, {"x": 0.5}, {"x": 1}, {"x": {"y": 1}},
    date(2024, 1, 2),
]  # fmt: skip


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def value_of(experiment: Experiment, key: str) -> Any:
    value: Any = experiment
    for part in key.split("."):
        value = getattr(value, part)
    return value


def refusal(source: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        loads(source, overrides, where="run.toml")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def keys(schema: type[Any] = Experiment, prefix: str = "") -> set[str]:
    found = set()
    for name, field in schema.model_fields.items():
        found.add(prefix + name)
        if hasattr(field.annotation, "model_fields"):
            found |= keys(field.annotation, f"{prefix}{name}.")
    return found


# -- one value wrong


def test_every_key_is_known_here() -> None:
    assert keys() == set(VALID)


@pytest.mark.parametrize("key", VALID)
def test_a_value_is_taken_as_it_is_or_refused_in_one_line(key: str) -> None:
    for value in POOL:
        source = tomli_w.dumps(nested(key, value))
        if VALID[key](value):
            found = value_of(loads(source, NEEDS.get(key, [])), key)
            assert table(value) or found == (tuple(value) if isinstance(value, list) else value)
        else:
            place, _, found = refusal(source).rpartition(", found ")
            if isinstance(value, dict):  # of an unknown key inside the table, or of the table
                assert key in refusal(source)
            else:
                assert place.startswith(f"run.toml: {key}: ") or place.startswith(f"run.toml: {key}.")
                assert found in {f"{item!r}." for item in [value, *(value if isinstance(value, list) else [])]}


def test_the_pool_holds_enough_that_is_right_and_enough_that_is_wrong() -> None:
    right = {key: sum(check(value) for value in POOL) for key, check in VALID.items()}
    assert all(0 < count < len(POOL) - 10 for count in right.values()), right


@pytest.mark.parametrize("key", [key for key in VALID if "." in key])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_nan_and_infinity_are_no_numbers(key: str, value: str) -> None:
    section, _, name = key.partition(".")
    assert refusal(f"[{section}]\n{name} = {value}").startswith(f"run.toml: {key}: ")


def test_strategies_refuse_infinity_too() -> None:
    class Settings(StrategySettings):
        weight: float = Field(1.0, ge=0)

    assert validate(Settings, {"weight": 2}, "here").weight == 2.0
    with pytest.raises(UserError, match=r"^here: weight: .*finite.*, found inf\.$"):
        validate(Settings, {"weight": math.inf}, "here")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("rounds = 'a'", "rounds: expected a whole number without a point, found 'a'."),
        ("alone = 1", "alone: expected true or false, found 1."),
        ("[train]\nlr = 'a'", "train.lr: expected a number, found 'a'."),
        ("[train]\noptimizer = 'adm'", "train.optimizer: expected 'sgd', 'adam' or 'adamw', found 'adm'."),
        ("[data]\nlocal_test = 1", "data.local_test: expected a number less than 1, found 1."),
        ("[federation]\nviews = []", "federation.views: expected one or more, found []."),
        ("[federation]\nviews = 'image'", "federation.views: expected a list, such as [\"a\"], found 'image'."),
        ("[federation]\nviews = ['a', 1]", "federation.views.1: expected a text in quotes, found 1."),
        ("[federation]\nmissing = 1", "federation.missing: expected a table, such as { name = 0.5 }, found 1."),
        ("[federation.missing]\nimage = 1", "federation.missing.image: expected a number less than 1, found 1."),
        (
            "[federation.missing]\nimage = -0.1",
            "federation.missing.image: expected a number greater than or equal to 0, found -0.1.",
        ),
    ],
)
def test_what_was_expected_is_said_in_plain_words(source: str, expected: str) -> None:
    assert refusal(source) == f"run.toml: {expected}"


# -- unknown keys, and files that are none


@pytest.mark.parametrize(
    ("source", "given", "meant"),
    [
        ("sed = 1", "sed", "seed"),
        ("stratergy = 'fedmd'", "stratergy", "strategy"),
        ("[trian]\nlr = 1", "trian", "train"),
        ("[train]\nlearning_rate = 1\nbatchsize = 3", "train.learning_rate", None),
        ("[train]\nbatchsize = 3", "train.batchsize", "train.batch_size"),
        ("[engine]\nworker = 3", "engine.worker", "engine.workers"),
        ("[federation]\nclient = 3", "federation.client", "federation.clients"),
        ("[data.public]\nsize = 1", None, None),
    ],
)
def test_an_unknown_key_gets_the_nearest_valid_one(source: str, given: str | None, meant: str | None) -> None:
    message = refusal(source)
    if given is None:
        assert message.startswith("run.toml: data.public: ")
    else:
        assert message.startswith(f"run.toml: unknown key '{given}': ")
        assert ("did you mean" in message) or meant is None
        assert meant is None or f"did you mean '{meant}'? Known: " in message


@pytest.mark.parametrize(
    "source", ["x", "[train", "seed = 1\nseed = 2", "seed = ", "a = 'b", "seed = " + "9" * 5000, "\x00"]
)
def test_what_is_no_toml_is_refused(source: str) -> None:
    assert refusal(source).startswith("run.toml: expected TOML, found a mistake: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, content in ((tmp_path / "none.toml", None), (tmp_path / "latin.toml", b"name = '\xff'")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match="expected a readable experiment file") as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_errors_of_a_file_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("rounds = 0", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: rounds: expected a number greater than or equal to 1, found 0."


@pytest.mark.parametrize("others", ["plan = 'cohorts'", "address = 'ray://host:1'"])
def test_flowers_engine_refuses_what_only_our_grids_can(others: str) -> None:
    assert refusal(f"[engine]\nname = 'flower'\n{others}").startswith(
        f"run.toml: engine.{others.split(maxsplit=1)[0]}: "
    )


def test_clients_that_bring_their_samples_say_themselves_what_these_lack() -> None:
    source = "[federation]\npartition = 'own'\n[federation.missing]\nimage = 0.5"
    assert refusal(source).startswith("run.toml: federation.missing: with partition 'own' the clients' data say")


def test_no_more_clients_can_be_needed_than_there_are() -> None:
    assert loads("[federation]\nclients = 3\nmin_clients = 3").federation.min_clients == 3
    assert refusal("[federation]\nclients = 3\nmin_clients = 4").startswith(
        "run.toml: federation.min_clients: expected at most federation.clients, 3, found 4"
    )


# -- there and back

CHANGED: Mapping[str, Any] = {
    "name": "other-1.x",
    "strategy": "package.module:Class",
    "seed": 2**40,
    "rounds": 9,
    "data": {
        "name": "mnist", "root": "some folder", "public": 400, "public_per_round": 5, "validation": 0.1, "test": 100,
        "public_labels": True, "local_test": 0.0,
    },
    "federation": {
        "clients": 3, "partition": "pathological", "alpha": 1, "classes_per_client": 4, "min_samples": 0,
        "architectures": ["mlp", "cnn"], "views": ["image@4"], "participation": 0.5, "feature_width": 8,
    },
    "train": {
        "local_epochs": 0, "batch_size": 1, "optimizer": "sgd", "lr": 1e-30, "momentum": 0.9, "weight_decay": 1e-4,
        "dtype": "float64", "device": "cuda:1",
    },
    "communication": {"up": ["top-k:3", "float16"], "down": ["bfloat16"]},
    "engine": {
        "workers": 2, "address": "ray://host:1", "gpus_per_worker": 0.25, "plan": "cohorts", "cohort_size": 2,
        "threads": 3, "evaluate_every": 0, "checkpoint_every": 3, "timeout": 1.5,
    },
    "strategies": {"fedmd": {"text": 'quotes " and \\', "list": [1, 2.5], "nested": {"x": True}}},
}  # fmt: skip


def test_defaults_survive_toml_and_are_all_written_out() -> None:
    written = Experiment().to_toml()
    assert loads(written) == Experiment()
    names = {key.split(".")[-1] for key, check in VALID.items() if check is not table}
    assert {name for name in names if f"{name} = " in written} == names - {
        "root",
        "address",
        "strategies",
        "teacher_view",
        "missing",
        "min_clients",
    }


def test_changed_values_survive_toml() -> None:
    experiment = parse(CHANGED, {}, "here")
    for section, values in CHANGED.items():
        for name, value in values.items() if isinstance(values, dict) and section != "strategies" else []:
            assert value_of(experiment, f"{section}.{name}") == (tuple(value) if isinstance(value, list) else value)
            assert value_of(Experiment(), f"{section}.{name}") != value_of(experiment, f"{section}.{name}")
    again = loads(experiment.to_toml())
    assert again == experiment
    assert again.model_dump() == experiment.model_dump()
    assert type(again.data.public) is int


def test_an_experiment_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Experiment().train.lr = 1.0  # type: ignore[misc]


def test_changed_replaces_dotted_keys_in_a_copy() -> None:
    before = parse(CHANGED, {}, "here")
    after = before.changed(**{"train.lr": 0.5, "seed": 3, "strategies.fedmd.list": [7], "data.root": None})
    assert (after.train.lr, after.seed, after.strategies["fedmd"]["list"], after.data.root) == (0.5, 3, [7], None)
    assert before == parse(CHANGED, {}, "here")
    assert after.changed(**{
        "train.lr": 1e-30, "seed": 2**40, "strategies.fedmd.list": [1, 2.5], "data.root": "some folder",
    }) == before  # fmt: skip
    with pytest.raises(UserError, match="experiment: rounds: "):
        before.changed(rounds=0)


# -- overrides of the command line


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("train.lr=0.1", "train.lr", 0.1),
        ("train.lr=1", "train.lr", 1.0),
        ("rounds=7", "rounds", 7),
        (" rounds = 7 ", "rounds", 7),
        ("data.public=400", "data.public", 400),
        ("data.public_labels=true", "data.public_labels", True),
        ("train.optimizer=sgd", "train.optimizer", "sgd"),
        ("train.optimizer='sgd'", "train.optimizer", "sgd"),
        ("name=run-1", "name", "run-1"),
        ("engine.address=ray://host:10001", "engine.address", "ray://host:10001"),
        ("data.name=a=b", "data.name", "a=b"),
        ("federation.architectures=['mlp', 'cnn']", "federation.architectures", ("mlp", "cnn")),
        ("strategies.fd.weight=2", "strategies", {"fd": {"weight": 2}}),
    ],
)
def test_an_override_is_typed_as_in_the_file(override: str, key: str, expected: object) -> None:
    found = value_of(loads("rounds = 2\n[train]\nlr = 0.5\n[engine]\nworkers = 1", [override]), key)
    assert found == expected
    assert type(found) is type(expected)


def test_an_override_leaves_the_neighbours_alone() -> None:
    experiment = loads("rounds = 2\n[train]\nlr = 0.5\nbatch_size = 3", ["train.lr=0.1", "train.lr=0.2"])
    assert (experiment.rounds, experiment.train.batch_size, experiment.train.lr) == (2, 3, 0.2)


def test_overrides_do_not_change_the_values_given() -> None:
    values = {"train": {"lr": 0.5}}
    assert parse(values, {"train.lr": 0.1}, "here").train.lr == 0.1
    assert values == {"train": {"lr": 0.5}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", r"^--set 'train\.lr': expected key=value"),
        ("=3", "^--set '=3': expected key=value"),
        ("two\nlines", r"^--set 'two\\nlines': expected key=value"),
        ("train.lr=fast", "^--set: train.lr: .*number, found 'fast'"),
        ("train.lr='0.1'", "^--set: train.lr: .*number, found '0.1'"),
        ("rounds=2.0", "^--set: rounds: .*whole number without a point, found 2.0"),
        ("rounds=", "^--set: rounds: .*whole number without a point, found ''"),
        ("rounds=true", "^--set: rounds: .*whole number without a point, found True"),
        ("rounds=3\nseed=4", r"^--set: rounds: .*whole number without a point, found '3\\nseed=4'"),
        ("data.public_labels=yes", "^--set: data.public_labels: .*true or false, found 'yes'"),
        ("train.lrr=1", r"^--set: unknown key 'train\.lrr': did you mean 'train\.lr'"),
        ("rounds.x=1", "^--set rounds.x: 'rounds' holds a value, not a table"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        loads("rounds = 2", [override], where="run.toml")
    assert len(str(caught.value).splitlines()) == 1


# -- settings that contradict each other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.momentum=0.9"], "train.momentum: only optimizer 'sgd' has one, found 0.9 with 'adam'; remove it"),
        (["engine.gpus_per_worker=0.5"], "engine.gpus_per_worker: only our own Ray workers share GPUs, found 0.5"),
        (["engine.gpus_per_worker=0.5", "engine.workers=2", "engine.name=flower"], "engine.gpus_per_worker: only our"),
        (["engine.plan=cohorts", "engine.name=flower"], "engine.plan: Flower's engine trains clients one by one"),
        (["engine.address=ray://a:1", "engine.name=flower"], "engine.address: only our own grid joins a Ray cluster"),
        (["engine.address=ray://a:1"], "engine.address: expected to be told how many workers to start on that Ray"),
    ],
)
def test_what_would_be_ignored_in_silence_is_refused(settings: list[str], message: str) -> None:
    assert refusal("", *settings).startswith(f"run.toml: {message}")


def test_the_overrides_that_the_app_shows_are_understood() -> None:
    root = Path(__file__).parents[1]
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    shown = re.search(r'^overrides = ""  # "([^"]+)"', text, re.MULTILINE)
    app = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]

    assert shown is not None
    assert load(root / app["experiment"], shlex.split(shown[1])) != load(root / app["experiment"])
