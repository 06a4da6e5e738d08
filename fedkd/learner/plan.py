"""The plan of a run: which clients are trained together, in which chunks, and where that is not worth it.

A pure function of the experiment: it never looks at the machine, so that a run's bits do not depend on it either.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from math import ceil

import torch

from fedkd.config import Experiment
from fedkd.data.federation import Federation, build
from fedkd.learner.worth import unfit_part, vectorisable, worth_it

LOG = logging.getLogger("fedkd")

DEALT_TOGETHER = 256
"""Clients that are sorted by their samples: of more, too many replies would wait for their turn to be taken."""


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
        chunks = _alike(group, federation, engine.cohort_size) if together else [(key,) for key in group]
        cohorts.append(Cohort(architecture, view, together, tuple(chunks)))
    return cohorts


def chunks_in_a_round(experiment: Experiment, keys: Iterable[str]) -> int:
    """Return how many workers can have something to do in a round: as many if the draw of who takes part suits them.

    Args:
        experiment: names the plan, the largest chunk, and the share of the clients that take part.
        keys: of all clients.
    """
    cohorts, largest = plan(experiment, keys), experiment.engine.cohort_size
    members = [sum(map(len, one.chunks)) for one in cohorts]
    taking_part = experiment.federation.taking_part(sum(members))
    most = [min(clients, taking_part) for clients in members]
    chunks = [ceil(n / largest) if one.vectorised else n for n, one in zip(most, cohorts, strict=True)]
    return min(taking_part, sum(chunks))


def tell_of_unfit_models(experiment: Experiment) -> None:
    """Warn where the plan ``cohorts`` cannot train clients together, because of what their students are made of."""
    if experiment.engine.plan != "cohorts":
        return
    federation = build(experiment)
    for architecture, view in dict.fromkeys((one.architecture, one.view) for one in federation.holdings.values()):
        if part := unfit_part(federation.model_spec(architecture, view), autocast=experiment.train.autocast):
            LOG.warning("cohorts: clients with %s are trained one by one, since it has %s", architecture, part)


def _alike(keys: list[str], federation: Federation, largest: int) -> Iterator[tuple[str, ...]]:
    """Yield chunks of clients that have about as many samples, so that they take about as many steps together.

    Args:
        keys: of all clients, in order; those of a few neighbouring chunks are dealt to these anew, the largest first.
        federation: knows their samples.
        largest: number of clients in a chunk.
    """
    chunks, few = _cut(keys, -(-len(keys) // largest)), max(1, DEALT_TOGETHER // largest)
    for start in range(0, len(chunks), few):
        window = chunks[start : start + few]
        falling = sorted(chain.from_iterable(window), key=lambda key: -len(federation.holdings[key].train))
        yield from _cut(falling, len(window))


def _cut(group: list[str], number: int) -> tuple[tuple[str, ...], ...]:
    """Cut a list into a number of pieces whose sizes differ by one at most."""
    bounds = [len(group) * k // number for k in range(number + 1)]
    return tuple(tuple(group[start:end]) for start, end in pairwise(bounds))
