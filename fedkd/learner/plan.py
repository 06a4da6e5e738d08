"""The plan of a run: which clients are trained together, in which chunks, and where that is not worth it.

A pure function of the experiment: it never looks at the machine, so that a run's bits do not depend on it either.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch

from fedkd.config import Experiment
from fedkd.data.federation import Federation, build
from fedkd.learner.worth import vectorisable, worth_it

SORTED_CHUNKS = 8
"""Chunks' clients that are sorted by their samples: of more, too many replies would wait for their turn to be taken."""


@dataclass(frozen=True)
class Cohort:
    """Clients with the same architecture and view.

    Attributes:
        architecture: of their students.
        view: that they hold.
        vectorised: whether they are trained together on their private samples.
        chunks: keys of the clients that one worker runs at a time; of one client each where nothing is vectorised.
    """

    architecture: str
    view: str
    vectorised: bool
    chunks: tuple[tuple[str, ...], ...]


def plan(experiment: Experiment, keys: Iterable[str]) -> list[Cohort]:
    """Divide clients into cohorts, and these into chunks of nearly equal size.

    Those in a chunk have about as many samples, so that they take about as many steps together.

    Args:
        experiment: names the plan, and the largest chunk.
        keys: of the clients that take part.
    """
    federation, engine, train = build(experiment), experiment.engine, experiment.train
    device = torch.device(train.device)
    members: dict[tuple[str, str], list[str]] = {}
    for key in sorted(keys):
        holding = federation.holdings[key]
        members.setdefault((holding.architecture, holding.view), []).append(key)
    cohorts = []
    for (architecture, view), group in members.items():
        spec = federation.model_spec(architecture, view)
        pays = vectorisable(spec, autocast=train.autocast) and worth_it([spec], train.batch_size, device)
        together = engine.plan == "cohorts" and pays
        number = -(-len(group) // engine.cohort_size) if together else len(group)
        ordered = _by_samples(group, federation, SORTED_CHUNKS * engine.cohort_size) if together else group
        cohorts.append(Cohort(architecture, view, together, _cut(ordered, number)))
    return cohorts


def _by_samples(keys: list[str], federation: Federation, window: int) -> list[str]:
    """Sort each of the windows that follow one another by the number of samples, the most first."""
    windows = [keys[start : start + window] for start in range(0, len(keys), window)]
    return [key for one in windows for key in sorted(one, key=lambda key: -len(federation.holdings[key].train))]


def _cut(group: list[str], number: int) -> tuple[tuple[str, ...], ...]:
    """Cut a list into a number of pieces whose sizes differ by one at most."""
    bounds = [len(group) * k // number for k in range(number + 1)]
    return tuple(tuple(group[start:end]) for start, end in pairwise(bounds))
