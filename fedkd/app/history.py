"""What a run leaves behind, as plain records."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

Scores = dict[str, float]
Metrics = dict[str, Scores | None]


@dataclass(frozen=True)
class RoundRecord:
    """One round: one line of ``rounds.jsonl``.

    Attributes:
        round: number, from 1.
        seconds: wall-clock time, evaluation included.
        participants: the clients whose replies count: key, and gradient steps of their students in this round.
        failed: reason by key of those whose replies do not.
        bytes_up: bytes that clients sent, by kind of knowledge.
        bytes_down: bytes that clients received, by kind of knowledge.
        digest: state digest of the run up to this round.
        metrics: ``clients_global``, ``clients_local``, ``ensemble_global``, ``server_global``; None if not evaluated.
        unmeasured: reason by key of the clients that should have been evaluated and were not.
        bytes_measured: bytes that clients sent for the teacher ensemble to be evaluated: their outputs on the test set,
            which are no knowledge, and which nobody would send who only trains; left out of the line where it is 0.
        refused: number of replies that were not counted, by reason (see :mod:`fedkd.app.refusals`).
        afresh: keys of the clients that began anew in this round, as their states were lost; left out of the line where
            there are none.
    """

    round: int
    seconds: float
    participants: Mapping[str, int]
    failed: Mapping[str, str]
    bytes_up: Mapping[str, int]
    bytes_down: Mapping[str, int]
    digest: str
    metrics: Metrics | None = None
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    afresh: Sequence[str] = ()
    bytes_measured: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        values = dict(plain(asdict(self)))
        return {name: value for name, value in values.items() if value or name not in ("afresh", "bytes_measured")}


@dataclass(frozen=True)
class ClientRecord:
    """One client at the last evaluation: one line of ``clients.jsonl``.

    Attributes:
        client: its key.
        architecture: of its student.
        view: that it holds.
        num_samples: size of its private training shard.
        missing: number of its training samples that lack a view, for each view that it holds.
        label_counts: samples of each class in that shard, ``C`` numbers.
        global_: scores on the global test set.
        local: scores on its own test split; None if it has none.
    """

    client: str
    architecture: str
    view: str
    num_samples: int
    missing: Mapping[str, int]
    label_counts: Sequence[int]
    global_: Scores
    local: Scores | None

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return {name.rstrip("_"): plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the record that :meth:`to_json` made plain values of."""
        return cls(**{"global_" if name == "global" else name: value for name, value in values.items()})


def plain(values: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return JSON values with numbers that JSON has no word for (NaN, infinity) as None."""
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {name: plain(value) for name, value in values.items()}
    return [plain(value) for value in values] if isinstance(values, list | tuple) else values


def summarise_run(strategy: str, seed: int, records: Sequence[RoundRecord], seconds: float) -> dict[str, Any]:
    """Return the run's summary: the last round's metrics, and the traffic of all rounds in bytes.

    Args:
        strategy: its name.
        seed: the run's seed.
        records: of all rounds, in order.
        seconds: wall-clock time of the run.
    """
    last = records[-1]
    return {
        "strategy": strategy,
        "seed": seed,
        "rounds": last.round,
        "digest": last.digest,
        "metrics": plain(last.metrics),
        "bytes_up": sum(sum(record.bytes_up.values()) for record in records),
        "bytes_down": sum(sum(record.bytes_down.values()) for record in records),
        "bytes_measured": sum(record.bytes_measured for record in records),
        "seconds": round(seconds, 3),
    }
