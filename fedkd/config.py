"""The experiment: all that decides a run's result, read from one TOML file and checked before anything starts."""

import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedkd.errors import UserError, unknown

Size = float | int
S = TypeVar("S", bound=BaseModel)

_PLAIN = {
    "tuple_type": 'expected a list, such as ["a"]',
    "model_type": "expected a table of settings",
    "dict_type": "expected a table, such as { name = 0.5 }",
    "too_short": "expected one or more",
    "string_type": "expected a text in quotes",
    "int_type": "expected a whole number without a point",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_pattern_mismatch": "expected letters, digits, '_', '-' and '.', beginning with a letter or digit",
}
"""What pydantic says in words that only programmers know, by its type of error."""
_UNION_MEMBERS = {"float", "int"}  # pydantic puts the tried member of a union, such as Size, into an error's location


class Section(BaseModel):
    """A part of the experiment: frozen, strictly typed, without unknown keys, all numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StrategySettings(Section):
    """Base of every strategy's own settings; each field states meaning, unit, range and paper symbol."""


class DataSettings(Section):
    """Which samples there are, and how they are divided into the four splits."""

    name: str = Field(
        "digits", description="built-in data set, path of an .npz, or path of a folder of images or recordings"
    )
    root: str | None = Field(None, description="folder of the built-in data set's files")
    download: bool = Field(False, description="fetch a missing data set from its original source")
    public: Size = Field(0.25, ge=0, description="public set: a share of the training samples below 1, else a count")
    public_per_round: int = Field(0, ge=0, description="public samples drawn for each round; 0: all of them")
    validation: Size = Field(0.0, ge=0, description="validation set: a share below 1, else a count")
    test: Size = Field(0.2, gt=0, description="global test set; used only where the publisher has not set one apart")
    measure_on: Literal["test", "validation"] = Field(
        "test",
        description="validation: the validation set takes the test set's place, to choose settings by; nothing looks "
        "at the test set",
    )
    public_labels: bool = Field(False, description="whether the public set carries labels")
    local_test: float = Field(0.2, ge=0, lt=1, description="share of each client's shard kept as its own test split")
    split_by: Literal["sample", "group"] = Field(
        "sample",
        description="what the splits take: samples, or all samples of a natural owner, such as a person; then a client "
        "has no test split of its own",
    )

    @field_validator("public", "validation", "test")
    @classmethod
    def _check_size(cls, size: Size) -> Size:
        if size >= 1 and isinstance(size, float):
            raise ValueError("expected a share below 1, or a whole number of samples without a point")
        return size


class FederationSettings(Section):
    """Who takes part: number of clients, their shards, architectures and views."""

    clients: int = Field(10, ge=1, description="number of clients")
    partition: Literal["iid", "dirichlet", "pathological", "natural", "own"] = Field(
        "dirichlet", description="how shards are dealt; own: in a deployment, every client brings its own samples"
    )
    min_clients: int | None = Field(
        None,
        ge=1,
        description="fewest clients to start with once engine.join_timeout is over, to begin a round with, and to "
        "reply in it; if absent, a deployment starts with all, and one is enough for the rest",
    )
    alpha: float = Field(0.5, gt=0, description="Dirichlet concentration: smaller is more skewed")
    classes_per_client: int = Field(2, ge=1, description="classes per client of the pathological partition")
    min_samples: int = Field(10, ge=0, description="smallest shard that the partition may deal out")
    architectures: tuple[str, ...] = Field(
        ("cnn",),
        min_length=1,
        strict=False,
        description="names, or object references package.module:function, dealt to the clients in turn",
    )
    views: tuple[str, ...] = Field(
        ("image",), min_length=1, strict=False, description="dealt to the clients in turn; image+audio joins two views"
    )
    teacher_view: str | None = Field(
        None, description="view of their samples that clients have while they train, for a teacher; none but their own"
    )
    missing: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(
        {}, description="share of each client's training samples that lack a view, by its name, from 0 to below 1"
    )
    participation: float = Field(1.0, gt=0, le=1, description="share of the clients that take part in a round")
    feature_width: int = Field(64, ge=1, description="width d of every student's features")

    def taking_part(self, clients: int) -> int:
        """Return how many of so many clients take part in a round: at least one."""
        return max(1, round(self.participation * clients)) if clients else 0


class TrainSettings(Section):
    """How students are trained, unless a strategy says otherwise."""

    local_epochs: int = Field(
        10, ge=0, description="passes over the private shard per round; a strategy's own setting goes before it"
    )
    batch_size: int = Field(32, ge=1, description="samples per step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adam", description="optimiser, fresh in every fit")
    lr: float = Field(1e-3, gt=0, description="learning rate")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(0.0, ge=0, description="weight decay (decoupled for AdamW)")
    dtype: Literal["float32", "float64", "bf16-mixed"] = Field(
        "float32",
        description="floating-point type of models and inputs; bf16-mixed is float32, with training steps in bfloat16 "
        "where torch finds it safe",
    )
    device: str = Field("cpu", description="torch device: cpu, cuda, cuda:0, ...")

    @property
    def autocast(self) -> bool:
        """Whether training steps compute in bfloat16."""
        return self.dtype == "bf16-mixed"


class CommunicationSettings(Section):
    """How what travels is coded."""

    up: tuple[str, ...] = Field(
        (), strict=False, description='codecs of what clients send, in their order, such as ["top-k:3", "float16"]'
    )
    down: tuple[str, ...] = Field((), strict=False, description="codecs of what clients receive, in their order")


class EngineSettings(Section):
    """Where the work is done; of these only ``plan`` and ``threads`` can change a bit of the result."""

    name: Literal["local", "flower"] = Field("local", description="our own grids, or Flower's simulation")
    workers: int = Field(0, ge=0, description="Ray workers; 0 runs in this process and does not import Ray")
    address: str | None = Field(None, description="address of a running Ray cluster, such as ray://host:10001")
    gpus_per_worker: float = Field(0.0, ge=0, description="share of a GPU that one worker holds")
    plan: Literal["one-by-one", "cohorts"] = Field("one-by-one", description="how clients are trained")
    cohort_size: int = Field(64, ge=2, description="largest number of clients in one vectorised step")
    threads: int = Field(1, ge=1, le=1024, description="torch threads per process")
    evaluate_every: int = Field(1, ge=0, description="rounds between evaluations; the last round always is; 0: only it")
    checkpoint_every: int = Field(
        1, ge=0, description="rounds between checkpoints in the run folder, where fedkd resume goes on; 0: none"
    )
    timeout: float = Field(
        3600.0,
        gt=0,
        description="seconds to wait for the replies of one round; not used where clients run in this process",
    )
    join_timeout: float = Field(120.0, gt=0, description="seconds to wait for the clients to appear")


class Experiment(Section):
    """One complete experiment; equal experiments give equal bits.

    Example:
        >>> Experiment(strategy="fedmd", rounds=3).federation.clients
        10
    """

    name: str = Field("experiment", pattern=r"^\w[\w.-]*$", description="name of the run folder")
    strategy: str = Field("fedmd", description="name, or object reference package.module:Class")
    seed: int = Field(0, ge=0, description="seed of everything random")
    rounds: int = Field(5, ge=1, description="number of rounds; clients receive in each what came of the one before")
    data: DataSettings = DataSettings()
    federation: FederationSettings = FederationSettings()
    train: TrainSettings = TrainSettings()
    communication: CommunicationSettings = CommunicationSettings()
    engine: EngineSettings = EngineSettings()
    alone: bool = Field(
        False, description="also train every client alone, for as many gradient steps, and print each view's gain"
    )
    strategies: dict[str, dict[str, Any]] = Field({}, description="settings of strategies, by strategy name")

    @model_validator(mode="after")
    def _check_across(self) -> Self:
        if self.train.momentum and self.train.optimizer != "sgd":
            raise ValueError(
                f"train.momentum: only optimizer 'sgd' has one, found {self.train.momentum} with "
                f"{self.train.optimizer!r}; remove it or set train.optimizer = 'sgd'"
            )
        self._check_clients()
        if self.engine.gpus_per_worker and (self.engine.name == "flower" or not self.engine.workers):
            raise ValueError(
                f"engine.gpus_per_worker: only our own Ray workers share GPUs, found {self.engine.gpus_per_worker:g} "
                "without any; remove it or set engine.workers above 0 and engine.name = 'local'"
            )
        if self.engine.name == "flower" and self.engine.plan != "one-by-one":
            raise ValueError(
                "engine.plan: Flower's engine trains clients one by one, found 'cohorts'; set 'one-by-one'"
            )
        if self.engine.name == "flower" and self.engine.address:
            raise ValueError(
                "engine.address: only our own grid joins a Ray cluster; remove it or set engine.name = 'local'"
            )
        if self.engine.address and not self.engine.workers:
            raise ValueError(
                "engine.address: expected to be told how many workers to start on that Ray cluster, found "
                "engine.workers = 0, which runs in this process; set engine.workers, or remove the address"
            )
        return self

    def _check_clients(self) -> None:
        settings = self.federation
        if settings.min_clients is not None and settings.min_clients > settings.clients:
            raise ValueError(
                f"federation.min_clients: expected at most federation.clients, {settings.clients}, found "
                f"{settings.min_clients}; lower it"
            )
        if settings.partition == "own" and settings.missing:
            raise ValueError(
                "federation.missing: with partition 'own' the clients' data say what they lack; remove it, or have "
                "another partition"
            )

    def to_toml(self) -> str:
        """Return the complete experiment as TOML text, every default written out."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))

    def changed(self, **overrides: Any) -> "Experiment":  # noqa: ANN401 - a settings value of any type
        """Return this experiment with dotted keys replaced, such as ``changed(**{"train.lr": 0.1})``."""
        return parse(_without_none(self.model_dump(mode="json")), overrides, where="experiment")


def load(path: Path | str, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Experiment:
    """Read an experiment file.

    Args:
        path: the TOML file.
        overrides: dotted keys with values, or ``key=value`` texts as given on the command line.

    Raises:
        UserError: the file is missing, is no TOML, or holds a wrong key or value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: expected a readable experiment file, found none ({error}); check the path."
        ) from error
    return loads(text, overrides, where=str(path))


def loads(text: str, overrides: Mapping[str, Any] | Sequence[str] = (), where: str = "experiment") -> Experiment:
    """Read an experiment from TOML text (see :func:`load`)."""
    try:
        values = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or a number with thousands of digits
        raise UserError(f"{where}: expected TOML, found a mistake: {error}.") from error
    if isinstance(overrides, Mapping):
        return parse(values, overrides, where)
    given = dict(_parse_override(item) for item in overrides)
    return parse(values, given, where, given)


def dotted(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings in nested tables with their dotted keys, as ``--set`` takes them."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def parse(
    values: Mapping[str, Any], overrides: Mapping[str, Any], where: str, given: Collection[str] = ()
) -> Experiment:
    """Check plain values with overrides applied (see :func:`validate` for the other arguments).

    Raises:
        UserError: names file, key, what was expected and what was found.
    """
    merged: dict[str, Any] = _deep_copy(values)
    for key, value in overrides.items():
        _assign(merged, key, value)
    return validate(Experiment, merged, where, given)


def validate(schema: type[S], values: Mapping[str, Any], where: str, given: Collection[str] = ()) -> S:
    """Check plain values against a schema, turning the first mistake into one line.

    Args:
        schema: what they must be.
        values: nested as the schema is.
        where: they come from, but for those that were given.
        given: dotted keys that were given on the command line.

    Raises:
        UserError: names place, key, what was expected and what was found; unknown keys get the nearest valid one.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = [str(part) for part in first["loc"] if part not in _UNION_MEMBERS]
        if any(f"{'.'.join(path)}.".startswith(f"{key}.") for key in given):
            where = "--set"
        if first["type"] == "extra_forbidden":
            raise unknown(
                "key", ".".join(path), [".".join([*path[:-1], key]) for key in _keys(schema, path[:-1])], where
            ) from None
        message = _PLAIN.get(first["type"], first["msg"].removeprefix("Value error, "))
        message = message.replace("Input should be", "expected a number" if "_than" in first["type"] else "expected")
        message = message[:1].lower() + message[1:]
        key = f"{'.'.join(path)}: " if path else ""
        found = f", found {first['input']!r}" if path else ""
        raise UserError(f"{where}: {key}{message}{found}.") from None


def _keys(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        annotation = schema.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        schema = annotation
    return list(schema.model_fields)


def _parse_override(item: str) -> tuple[str, Any]:
    key, separator, text = item.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--set {item!r}: expected key=value, such as train.lr=0.01.")
    try:
        values = tomllib.loads(f"value = {text}")
    except ValueError:
        values = {}
    # A bare word is a string, and so is a text that would smuggle in more keys on further lines.
    return key.strip(), values["value"] if len(values) == 1 else text


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:  # noqa: ANN401
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {dotted}: {parent!r} holds a value, not a table; it has no key {last!r}.")
    values[last] = value


def _deep_copy(values: Any) -> Any:  # noqa: ANN401
    if isinstance(values, Mapping):
        return {key: _deep_copy(value) for key, value in values.items()}
    return values


def _without_none(values: Any) -> Any:  # noqa: ANN401 - TOML has no null: a key that is absent means the default
    if isinstance(values, Mapping):
        return {key: _without_none(value) for key, value in values.items() if value is not None}
    return values
