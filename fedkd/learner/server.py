"""The server as its half of a strategy sees it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, final

import torch
from torch import Tensor

from fedkd import seeding
from fedkd.averaging import RunningAverage
from fedkd.data.federation import Federation
from fedkd.data.samples import Samples
from fedkd.errors import UserError
from fedkd.knowledge import Knowledge, SoftLabels, Weights
from fedkd.learner.base import ClientCard, Learner
from fedkd.learner.model import Model, fresh
from fedkd.task import Task

K = TypeVar("K", bound=Knowledge)


@final
@dataclass(frozen=True)
class Reply(Generic[K]):
    """What one client sent, checked against the round's contract.

    Attributes:
        client: who sent it.
        knowledge: what it sent.
    """

    client: ClientCard
    knowledge: K


@final
@dataclass
class Server(Learner):
    """The server in one round.

    Attributes:
        clients: all clients of the federation, by key, in sorted order.
        students: the view of each of the server's students, by the student's name, in sorted order.
        student_names: the name of each client's student, by client key; without clients that have none.
        federation: where the public samples come from; a strategy uses the methods below instead.
    """

    clients: Mapping[str, ClientCard]
    federation: Federation = field(repr=False)
    students: Mapping[str, str] = field(default_factory=dict)
    student_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """What the models' outputs mean: its ``loss`` is the supervised one."""
        return self.federation.task

    @property
    def classes(self) -> int:
        """Number of classes ``C``."""
        return len(self.federation.classes)

    def start_students(self, architecture_of: Callable[[ClientCard], str | None]) -> None:
        """Start a freshly initialised student for every architecture and view; its name decides its seed.

        Args:
            architecture_of: the architecture of a client's student; None if it has none.
        """
        pairs = [(card, architecture_of(card)) for _, card in sorted(self.clients.items())]
        self.student_names = {card.key: f"{architecture}+{card.view}" for card, architecture in pairs if architecture}
        self.students = {}
        for card, architecture in sorted(pairs, key=lambda pair: f"{pair[1]}+{pair[0].view}"):
            if architecture and (name := self.student_of(card)) not in self.students:
                spec = self.federation.model_spec(architecture, card.view)
                self.models[name] = fresh(spec, seeding.derive_seed(self.seed, "model", name), self.federation.like)
                self.students = {**self.students, name: card.view}

    def student_of(self, client: ClientCard) -> str:
        """Return the name of the server's student for a client; its weights are what travels between the two."""
        return self.student_names[client.key]

    def average(self, replies: Iterable[Reply[Weights]]) -> None:
        """Replace each student by the average of the weights that its clients sent, by number of samples.

        A student for which nobody with samples sent weights stays as it is.
        """
        for name, weights in self.averages(replies).items():
            self.load(weights, name)

    def averages(self, replies: Iterable[Reply[Weights]]) -> dict[str, Weights]:
        """Average the weights that each student's clients sent, by number of samples, keeping no more than the sums.

        Returns:
            The averages by the student's name; none for a student for which nobody with samples sent weights.
        """
        averages: dict[str, RunningAverage] = {}
        for reply in replies:
            if count := reply.client.num_samples:
                average = averages.setdefault(self.student_of(reply.client), RunningAverage())
                average.add(reply.knowledge.tensors, count)
        return {name: Weights(average.value()) for name, average in averages.items()}

    def received_model(self, reply: Reply[Weights]) -> Model:
        """Return the model whose weights a client sent."""
        student = self.models[self.student_of(reply.client)]
        return student.with_tensors({name: t.to(student.tensors[name]) for name, t in reply.knowledge.tensors.items()})

    def public(self, view: str) -> Samples:
        """Return this round's public subset in a view, without targets."""
        return self.federation.public(view, self.federation.public_subset(self.round))

    def labelled_public(self, view: str) -> Samples | None:
        """Return all public samples in a view with their labels, or None where the public set is unlabelled."""
        return self.federation.labelled_public(view)

    def pooled(self, view: str) -> Samples:
        """Return all clients' private samples in one view, with labels: only a simulation can."""
        return self.federation.pooled(view)

    def predict(self, models: Sequence[Model], samples: Sequence[Samples]) -> Tensor:
        """Return several models' logits, each on its own view of the same N samples, shape ``(K, N, C)``."""
        pairs = zip(models, samples, strict=True)
        return torch.stack([self.ask(self._prediction(model, view)) for model, view in pairs])

    def soft_labels(self, logits: Tensor) -> SoftLabels:
        """Return logits ``(M, C)`` on this round's public subset as knowledge to be sent.

        Raises:
            UserError: there are more or fewer logits.
        """
        ids = self.federation.public_subset(self.round)
        if logits.shape != (len(ids), self.classes):
            expected = f"expected logits of shape {(len(ids), self.classes)}, one row per public sample"
            raise UserError(f"soft_labels: {expected}, found {tuple(logits.shape)}.")
        return SoftLabels(ids, logits)
