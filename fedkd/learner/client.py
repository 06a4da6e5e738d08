"""The client as its half of a strategy sees it."""

from dataclasses import dataclass, field
from typing import final

import torch

from fedkd import seeding
from fedkd.data.federation import Federation
from fedkd.data.samples import Samples
from fedkd.errors import UserError
from fedkd.knowledge import Features, SoftLabels
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

    def private_in(self, view: str) -> Samples:
        """Return the training samples that have a view, in it, with their labels.

        Args:
            view: one of ``card.views``, or the teacher's.

        Raises:
            UserError: the client does not hold that view.
        """
        return self.federation.private_in(self.card.key, view)

    def pairs(self, view: str) -> tuple[Samples, Samples]:
        """Return the training samples that the client has in its own view and in another, in both, in one order.

        Args:
            view: one of ``card.views``, or the teacher's.
        """
        other = self.private_in(view)
        own, _ = self.private.divide(other.ids)
        return own, other.by_id(own.ids)

    def held_out(self, share: float, view: str | None = None) -> tuple[Samples, Samples]:
        """Divide the training samples in a view into those to train on and those to choose by or to calibrate on.

        Args:
            share: of the samples that are held out, from 0 to below 1; the same ones in every round.
            view: one of ``card.views``, or the teacher's; the client's own without.

        Returns:
            The samples to train on, and those held out, with their labels.
        """
        samples = self.private if view is None else self.private_in(view)
        source = seeding.generator(self.federation.experiment.seed, "held out", self.card.key)
        order = torch.randperm(len(samples), generator=source)
        count = round(share * len(samples))
        return samples.take(order[count:].sort().values), samples.take(order[:count].sort().values)

    @property
    def next_public_subset(self) -> Samples:
        """The public samples of this round, in the client's view, without targets."""
        return self.next_public_subset_in(self.card.view)

    def next_public_subset_in(self, view: str) -> Samples:
        """Return the public samples of this round in one of the client's views, or the teacher's, without targets.

        Raises:
            UserError: the client does not hold that view.
        """
        return self.federation.public(self._own(view), self.federation.public_subset(self.round))

    @property
    def labelled_public(self) -> Samples | None:
        """All public samples with their labels, or None where the public set is unlabelled."""
        return self.federation.labelled_public(self.card.view)

    def public(self, received: SoftLabels | Features, view: str | None = None) -> Samples:
        """Return the public samples that knowledge is about, in a view of the client, with what it says as ``teacher``.

        Args:
            received: logits or features of public samples.
            view: one of the client's views, or the teacher's; its own without.
        """
        samples = self.federation.public(self._own(view or self.card.view), received.ids)
        said = received.logits if isinstance(received, SoftLabels) else received.features
        return samples.with_targets(teacher=said.to(samples.inputs))

    def _own(self, view: str) -> str:
        if view not in (self.card.view, *self.card.views, self.card.teacher_view):
            held = ", ".join(self.card.views)
            raise UserError(f"{self.card.key}: expected a view that it holds ({held}), found {view!r}.")
        return view

    def predict(self, samples: Samples, model: str = "student") -> SoftLabels:
        """Return a model's soft labels of the samples, in evaluation mode."""
        return SoftLabels(samples.ids, self.logits(samples, model))
