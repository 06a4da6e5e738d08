"""What a client says of itself before round one, and what of it can be true."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from itertools import zip_longest
from typing import Any

import torch

import fedkd
from fedkd.app.source_digest import source_digest
from fedkd.app.wire import Header
from fedkd.config import Experiment, dotted
from fedkd.data.federation import Federation
from fedkd.data.holdings import views_of
from fedkd.data.own import KEY
from fedkd.knowledge import KnowledgeError
from fedkd.learner.base import ClientCard, card_of
from fedkd.strategy import Strategy
from fedkd.strategy.registry import complete
from fedkd.wording import where_they_differ

LOG = logging.getLogger("fedkd")
_MOST_SAMPLES = 10**12
"""What no client has: sums of such numbers must stay exact."""
_REMEDIES = {
    "version": "install the same fedkd on both",
    "code": "install the same checkout on both, the strategy's own file included",
    "experiment": "give both the same experiment",
    "classes": "bring the server's commons to this node, and name the file as commons in its node config",
    "held-out": "bring the server's commons, with its test and validation samples, to this node",
    "public-set": "bring the server's commons to this node, and name the file as commons in its node config",
}
"""What to do where something that all parties must have in common differs."""


@dataclass(frozen=True)
class Said:
    """What a client has said of itself, when it has been checked.

    Attributes:
        card: key, architecture, view and number of samples.
        label_counts: samples of each class in its shard.
        missing: number of its training samples that lack a view, for each view that it holds.
        models: number of its models.
    """

    card: ClientCard
    label_counts: list[int]
    missing: Mapping[str, int]
    models: int


def introduction(federation: Federation, strategy: Strategy, key: str) -> dict[str, Any]:
    """Return what an honest client says of itself alone; in a simulation the server knows it beforehand."""
    card, holding = card_of(federation, key), federation.holdings[key]
    return {
        "client": card.key,
        "architecture": card.architecture,
        "view": card.view,
        "num-samples": card.num_samples,
        "label-counts": federation.label_counts[key],
        "missing": list(holding.missing.values()),
        "models": len(strategy.client_models(card)),
    }


def agreed(experiment: Experiment, federation: Federation, strategy: Strategy) -> dict[str, Any]:
    """Return what all parties of a run must have in common.

    Args:
        experiment: all of it; a federation, which several experiments may share, knows but its own part.
        federation: what this party sees of it.
        strategy: of the experiment.
    """
    return {
        "version": fedkd.__version__,
        "code": source_digest(type(strategy)),
        "experiment": common_settings(experiment),
        "classes": list(federation.classes),
        "public-set": federation.public_digest,
        "held-out": federation.held_out_digest,
    }


def common_settings(experiment: Experiment) -> list[str]:
    """Return what both halves of a strategy go by, a line per key, but for where each party finds data and device.

    Settings of its strategy that are left out count as their defaults: a run that is gone on with has them all.
    """
    where = {"data": {"name", "root", "download"}, "train": {"device"}}
    said = {"strategy", "strategies", "seed", "rounds", "data", "federation", "train", "communication"}
    settings = complete(experiment).model_dump(include=said, exclude=where)
    return [f"{key} = {json.dumps(value)}" for key, value in dotted(settings)]


@lru_cache  # Python reads a package's whole description for its version
def libraries() -> Mapping[str, str]:
    """Return the versions of the libraries that compute and carry: reported, and only compared in a warning."""
    return {"torch": torch.__version__.partition("+")[0], "flwr": metadata.version("flwr")}


def expect_said(key: str, header: Header, expected: Mapping[str, Any]) -> None:
    """Refuse a client that says something else than is expected.

    Raises:
        KnowledgeError: names the first field that differs.
    """
    for name, value in expected.items():
        if header.get(name) != value:
            mine, theirs = _difference(value, header.get(name)) if name == "experiment" else (value, header.get(name))
            remedy = f"; {_REMEDIES[name]}" if name in _REMEDIES else ""
            ours, found = where_they_differ(repr(mine), repr(theirs))
            raise KnowledgeError(f"{key}: {name}: expected {ours} as the server has it, found {found}{remedy}")


def _difference(mine: list[str], theirs: object) -> tuple[object, object]:
    """Return the first lines that differ, or all if the other side's are no lines."""
    if not isinstance(theirs, list):
        return mine, theirs
    return next(pair for pair in zip_longest(mine, theirs) if pair[0] != pair[1])


def read_introduction(header: Header, common: Mapping[str, Any], federation: Federation, strategy: Strategy) -> Said:
    """Return what a client says of itself where only it knows its samples.

    Args:
        header: of its answer.
        common: what all parties must have in common (see :func:`agreed`).
        federation: the server's.
        strategy: the server's.

    Raises:
        KnowledgeError: something about it does not fit, or cannot be true.
    """
    key, settings = header.get("client"), federation.experiment.federation
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise KnowledgeError(f"client: expected a name of small letters, digits and '-', found {key!r:.80}")
    expect_said(key, header, common)
    architecture = _one_of(key, header, "architecture", settings.architectures)
    view = _one_of(key, header, "view", settings.views)
    [num_samples] = _counts(key, header, "num-samples", 1)
    label_counts = _counts(key, header, "label-counts", len(federation.classes))
    if sum(label_counts) != num_samples:
        raise KnowledgeError(f"{key}: label-counts: expected {num_samples} samples in all, found {sum(label_counts)}")
    views = views_of(federation.experiment, view)
    missing = dict(zip(views, _counts(key, header, "missing", len(views)), strict=True))
    if max(missing.values()) > num_samples + missing[view]:
        dealt = num_samples + missing[view]
        raise KnowledgeError(f"{key}: missing: expected at most {dealt} samples, found {list(missing.values())}")
    card = ClientCard(key, architecture, view, num_samples, settings.teacher_view)
    models = len(strategy.client_models(card))
    expect_said(key, header, {"models": models})
    _compare_libraries(key, header)
    return Said(card, label_counts, missing, models)


def _one_of(key: str, header: Header, name: str, allowed: tuple[str, ...]) -> str:
    found = header.get(name)
    if not isinstance(found, str) or found not in allowed:
        expected = f"expected one of federation.{name}s ({', '.join(allowed)})"
        raise KnowledgeError(f"{key}: {name}: {expected}, found {found!r:.80}")
    return found


def _counts(key: str, header: Header, name: str, length: int) -> list[int]:
    """Return the numbers of samples under a name: one, or a list."""
    found = header.get(name)
    numbers = found if isinstance(found, list) else [found]
    if len(numbers) != length or not all(type(n) is int and 0 <= n <= _MOST_SAMPLES for n in numbers):
        expected = "a whole number" if length == 1 else f"{length} whole numbers"
        raise KnowledgeError(f"{key}: {name}: expected {expected} from 0 on, found {found!r:.80}")
    return [int(n) for n in numbers]  # type: ignore[arg-type]


def _compare_libraries(key: str, header: Header) -> None:
    for name, mine in libraries().items():
        if (theirs := header.get(name)) != mine:
            LOG.warning("%s: %s %.40r, the server has %s: bits may differ from a simulation's", key, name, theirs, mine)
