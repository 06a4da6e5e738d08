"""Answer equal requests of many clients in one vectorised step each.

Clients with shards of different sizes take different numbers of steps: steps are left out, samples never padded, so
every client sees exactly the batches that it would see alone. A client's bits are not to depend on who else is in its
cohort. So every step is filled up with clients whose results are dropped: a convolution's kernel is chosen by the total
number of input channels, and some functions, such as GELU, torch computes in another way for the last elements of a
tensor (see :func:`~fedkd.learner.worth.fillers`).
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from fedkd.learner.fit import answer, batches, join, loss_of, prepare, small_steps, split, teacher_tensors
from fedkd.learner.model import Model
from fedkd.learner.requests import Answer, Fit, Request, Tensors
from fedkd.learner.vectorised import gradients_of
from fedkd.learner.worth import fillers, vectorisable
from fedkd.seeding import expect_no_draws

SMALLEST_COHORT = 4
"""Clients in the smallest vectorised step: from four on, convolutions of all numbers tried (to 100) gave equal bits."""

Members = tuple[int, ...]
Rows = list[Tensor]


def answer_together(requests: Sequence[Request]) -> list[Answer]:
    """Answer requests with equal keys; the answers come in the order of the requests.

    Predictions are made one by one: on a CPU, vectorising them took one to fourteen times as long.
    """
    fits = [request for request in requests if isinstance(request, Fit)]
    if not fits or not pays(fits[0]):
        return [answer(request) for request in requests]
    return list(fit_cohort(fits))


def pays(request: Fit) -> bool:
    """Whether clients with this request are trained together: their models allow it, and their steps are small."""
    models = [*request.models.values(), *request.teachers.values()]
    return small_steps(request) and all(vectorisable(model.spec, autocast=request.autocast) for model in models)


def fit_cohort(requests: Sequence[Fit]) -> list[dict[str, Model]]:
    """Train the models of K requests with equal keys, for which it :func:`pays`, together."""
    prepare(requests[0])
    order = sorted(range(len(requests)), key=lambda k: len(requests[k].samples))  # who still trains comes last
    cohort = _Cohort([requests[k] for k in order])
    with warnings.catch_warnings():
        # Of how torch computes it, such as each client's LSTM after another: the plan has weighed that.
        warnings.filterwarnings("ignore", "There is a performance drop because we have not yet implemented the batch")
        for members, rows, steps in _phases(cohort.requests):
            with expect_no_draws():
                cohort.step(members, rows, steps)
    trained = dict(zip(order, cohort.models(), strict=True))
    return [trained[k] for k in range(len(requests))]


class _Cohort:
    """The stacked tensors of K clients with equal requests, each of shape ``(K, ...)``; models also of the fillers."""

    def __init__(self, requests: Sequence[Fit]) -> None:
        self.requests = requests
        models = [*requests[0].models.values(), *requests[0].teachers.values()]
        self.fillers = max(fillers(model.spec) for model in models)
        filled = [*requests, *[requests[0]] * max(self.fillers, SMALLEST_COHORT - 1)]
        parts = [split(request.models) for request in filled]
        self.parameters, self.others = _stack([p for p, _ in parts]), _stack([o for _, o in parts])
        self.state = requests[0].optimiser.start(self.parameters)
        self.frozen = _stack([request.frozen for request in filled])
        teachers = [teacher_tensors(request) for request in filled]
        self.teachers = {name: _stack([row[name] for row in teachers]) for name in teachers[0]}
        self.inputs = _Column([request.samples.inputs for request in requests])
        self.targets = {
            name: _Column([request.samples.targets[name] for request in requests])
            for name in requests[0].samples.targets
        }

    def step(self, members: Members, rows: Rows, steps: Sequence[int]) -> None:
        """Train some clients for one step each.

        Args:
            members: their numbers, ascending.
            rows: the rows of each one's batch, int64, all of shape ``(B,)``.
            steps: the number of each one's step, from 1.
        """
        part = _Part(members, len(self.requests), self.fillers)
        rows = [*rows, *[rows[0]] * (part.size - len(rows))]
        parameters, others, frozen = (part.of(t) for t in (self.parameters, self.others, self.frozen))
        teachers = {name: part.of(tensors) for name, tensors in self.teachers.items()}
        inputs = self.inputs.take(part.numbers, rows)
        targets = {name: column.take(part.numbers, rows) for name, column in self.targets.items()}
        loss = partial(loss_of, self.requests[0])
        gradients, others = gradients_of(loss, parameters, others, inputs, targets, frozen, teachers)
        state = {slot: part.of(tensors) for slot, tensors in self.state.items()}
        mine = partial(_first, len(members))
        count = torch.tensor(steps, dtype=torch.float64, device=inputs.device)
        moments = {slot: mine(tensors) for slot, tensors in state.items()}
        depended = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        self.requests[0].optimiser.step(mine(parameters), {**gradients, **mine(depended)}, moments, count)
        part.put(self.others, others)
        if not part.in_place:
            part.put(self.parameters, parameters)
            for slot, tensors in state.items():
                part.put(self.state[slot], tensors)

    def models(self) -> Iterator[dict[str, Model]]:
        """Yield each client's models."""
        for k, request in enumerate(self.requests):
            yield join(request.models, _row({**self.parameters, **self.others}, k))


@dataclass(frozen=True)
class _Part:
    """The clients of one step: some of K, and after them the fillers, whose results are dropped.

    Attributes:
        members: numbers of those who train, ascending.
        clients: number of all of them.
        fillers: fewest that follow.
    """

    members: Members
    clients: int
    fillers: int

    @cached_property
    def size(self) -> int:
        """Clients in the step, with the fillers."""
        return max(SMALLEST_COHORT, len(self.members) + self.fillers)

    @cached_property
    def in_place(self) -> bool:
        """Whether the members are the last of all clients, so that they and the fillers need not be copied."""
        return self.members[0] == self.clients - len(self.members)

    @cached_property
    def numbers(self) -> list[int]:
        """Numbers of the members, and of the first of them again as the fillers."""
        return [*self.members, *[self.members[0]] * (self.size - len(self.members))]

    def of(self, stacked: Tensors) -> dict[str, Tensor]:
        """Return the step's part of tensors ``(K, ...)``: in place, or copies."""
        if self.in_place:
            first = self.members[0]
            return {name: tensor[first : first + self.size] for name, tensor in stacked.items()}
        return {name: tensor[self.numbers] for name, tensor in stacked.items()}

    def put(self, stacked: Tensors, part: Tensors) -> None:
        """Write the members' part back."""
        where = slice(self.members[0], self.clients) if self.in_place else list(self.members)
        for name, tensor in stacked.items():
            tensor[where] = part[name][: len(self.members)].detach()


class _Column:
    """One field of the samples of K clients, as one tensor: nothing is copied where all share one."""

    def __init__(self, fields: Sequence[Tensor]) -> None:
        shared = all(field is fields[0] for field in fields)
        self._values = fields[0] if shared else torch.cat(list(fields))
        sizes = [0 if shared else len(field) for field in fields]
        self._starts = [sum(sizes[:k]) for k in range(len(sizes))]

    def take(self, clients: Sequence[int], rows: Sequence[Tensor]) -> Tensor:
        """Return the clients' values at these rows, each of shape ``(B,)``: shape ``(len(clients), B, ...)``."""
        index = torch.stack(list(rows)) + torch.tensor([self._starts[k] for k in clients])[:, None]
        return self._values[index.to(self._values.device)]


def _phases(requests: Sequence[Fit]) -> Iterator[tuple[Members, Rows, list[int]]]:
    """Yield steps that clients can take together: their numbers, the rows of each one's batch, and of each the step.

    Clients are at different steps at one time, for none depends on another. In each epoch the full batches come first,
    and then the last ones, grouped by their size, which may be smaller, or larger by one.
    """
    one = requests[0]
    schedules = [batches(len(r.samples), one.epochs, one.batch_size, r.seed) for r in requests]
    lengths = [len(schedule) // one.epochs for schedule in schedules]
    for epoch in range(one.epochs):
        groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for k, length in enumerate(lengths):
            for j in range(length):
                size = len(schedules[k][epoch * length + j])
                groups[(j, size) if size == one.batch_size else (max(lengths), size)].append(k)
        for (j, _), members in sorted(groups.items()):
            at = [epoch * lengths[k] + min(j, lengths[k] - 1) for k in members]
            yield tuple(members), [schedules[k][i] for k, i in zip(members, at, strict=True)], [i + 1 for i in at]


def _stack(rows: Sequence[Tensors]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _first(count: int, stacked: Tensors) -> dict[str, Tensor]:
    return {name: tensor[:count] for name, tensor in stacked.items()}


def _row(stacked: Tensors, k: int) -> dict[str, Tensor]:
    return {name: tensor[k] for name, tensor in stacked.items()}
