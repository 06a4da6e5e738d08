"""What came out of a run, for Python: the same facts as in the run folder, and the trained models."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fedkd.learner.model import Model
from fedkd.learner.model_file import to_module

Records = Sequence[Mapping[str, Any]]


class Modules(Mapping[str, Mapping[str, nn.Module]]):
    """Clients' models as modules: each client's are built when it is first asked for, which takes milliseconds."""

    def __init__(self, models: Mapping[str, Mapping[str, Model]]) -> None:
        """Keep the models as data, by client key and model name."""
        self._models = models
        self._built: dict[str, Mapping[str, nn.Module]] = {}

    def __getitem__(self, key: str) -> Mapping[str, nn.Module]:
        """Return a client's modules by name, the same ones every time."""
        if key not in self._built:
            self._built[key] = _modules(self._models[key])
        return self._built[key]

    def __iter__(self) -> Iterator[str]:
        """Yield the clients' keys."""
        return iter(self._models)

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self._models)


@dataclass(frozen=True)
class Result:
    """What came out of a run.

    Attributes:
        summary: strategy, seed, rounds, digest, metrics, bytes and seconds, as in ``summary.json``.
        rounds: one plain record per round, as in ``rounds.jsonl``.
        clients: one plain record per client, as in ``clients.jsonl``.
        client_models: each client's trained models, by client key and model name.
        server_models: the server's trained models, by name.
        folder: the run folder; None if none was asked for.
    """

    summary: Mapping[str, Any]
    rounds: Records
    clients: Records
    client_models: Mapping[str, Mapping[str, nn.Module]]
    server_models: Mapping[str, nn.Module]
    folder: Path | None

    @property
    def metrics(self) -> Mapping[str, Mapping[str, float] | None]:
        """The last round's metrics."""
        metrics: Mapping[str, Mapping[str, float] | None] = self.summary["metrics"]
        return metrics

    @property
    def digest(self) -> str:
        """The state digest of the run."""
        return str(self.summary["digest"])


def make_result(
    summary: Mapping[str, Any],
    rounds: Records,
    clients: Records,
    server_models: Mapping[str, Model],
    client_models: Mapping[str, Mapping[str, Model]],
    folder: Path | None,
) -> Result:
    """Build a result from plain records and models as data (see :class:`Result`)."""
    return Result(summary, rounds, clients, Modules(client_models), _modules(server_models), folder)


def _modules(models: Mapping[str, Model]) -> dict[str, nn.Module]:
    return {name: to_module(model) for name, model in models.items()}
