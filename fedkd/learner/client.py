"""The client as its half of a strategy sees it."""

from dataclasses import dataclass, field
from typing import final

from fedkd.data.federation import Federation
from fedkd.data.samples import Samples
from fedkd.knowledge import SoftLabels
from fedkd.learner.base import ClientCard, Learner
from fedkd.task import Task


@final
@dataclass
class Client(Learner):
    """One client in one round.

    Attributes:
        card: key, architecture, view and number of private samples.
        federation: where its samples come from; a strategy uses the properties below instead.
    """

    card: ClientCard
    federation: Federation = field(repr=False)

    @property
    def task(self) -> Task:
        """What the models' outputs mean: its ``loss`` is the supervised one."""
        return self.federation.task

    @property
    def classes(self) -> int:
        """Number of classes ``C``."""
        return len(self.federation.classes)

    @property
    def private(self) -> Samples:
        """The client's own training samples in its view, with their labels."""
        return self.federation.private(self.card.key)

    @property
    def next_public_subset(self) -> Samples:
        """The public samples of this round, in the client's view, without targets."""
        return self.federation.public(self.card.view, self.federation.public_subset(self.round))

    @property
    def labelled_public(self) -> Samples | None:
        """All public samples with their labels, or None where the public set is unlabelled."""
        return self.federation.labelled_public(self.card.view)

    def public(self, received: SoftLabels) -> Samples:
        """Return the public samples of these soft labels, in the client's view, with their logits as ``teacher``."""
        samples = self.federation.public(self.card.view, received.ids)
        return samples.with_targets(teacher=received.logits.to(samples.inputs))

    def predict(self, samples: Samples, model: str = "student") -> SoftLabels:
        """Return a model's soft labels of the samples, in evaluation mode."""
        return SoftLabels(samples.ids, self.logits(samples, model))
