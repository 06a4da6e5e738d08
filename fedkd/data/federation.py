"""The federation: who holds which samples, in which view, with which architecture.

Nothing of the data travels: every process builds its part from the experiment and its seed, and the public-set contract
proves that all of them hold the same public set in the same order.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from fedkd import seeding
from fedkd.config import Experiment
from fedkd.data import sources
from fedkd.data.holdings import Holding, deal, views_of, with_view
from fedkd.data.samples import Samples
from fedkd.data.sources import DataSet
from fedkd.data.splits import Splits, commons, split
from fedkd.data.views import parts, present, shape
from fedkd.data.views import view as view_of
from fedkd.errors import UserError, unknown
from fedkd.models import ModelSpec
from fedkd.models.shapes import InputShape
from fedkd.task import Classification, Task

ROUNDS_SHARED = 2
"""Rounds whose public subsets are kept: clients learn from the one before, and answer for this one."""
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bf16-mixed": torch.float32}


@dataclass(frozen=True)
class Federation:
    """All parties of a simulated federation; of a real one, what one party sees of it.

    Attributes:
        experiment: what it was built from.
        dataset: all samples; in a real federation the shared ones, at a client's node its own as well.
        splits: train (dealt out to clients), public, validation, test.
        holdings: what each client holds, by key, in sorted order; in a real federation nobody's at the server, and at
            a node its client's alone.
    """

    experiment: Experiment
    dataset: DataSet
    splits: Splits
    holdings: dict[str, Holding]
    _cache: dict[Hashable, Samples] = field(default_factory=dict, repr=False, compare=False)
    _recent: dict[str, deque[Samples]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class list."""
        return self.dataset.classes

    @property
    def task(self) -> Task:
        """What the models' outputs mean."""
        return Classification(self.classes)

    def input_shape(self, view: str) -> InputShape:
        """Return the shape of one sample in a view, or of each part if there are several."""
        return shape(self.dataset, view)

    @cached_property
    def like(self) -> Tensor:
        """An empty tensor with the experiment's dtype and device."""
        return torch.empty(0, dtype=_DTYPES[self.experiment.train.dtype], device=self.experiment.train.device)

    def model_spec(self, architecture: str, view: str) -> ModelSpec:
        """Return the specification of a student for inputs of a view."""
        return ModelSpec(
            architecture, self.input_shape(view), self.task.outputs, self.experiment.federation.feature_width
        )

    def samples(self, ids: Tensor, view: str, *, labels: bool = True) -> Samples:
        """Return the samples with these ids, shape ``(N,)``, in a view, in the experiment's dtype and on its device.

        All that ask share them, so they are inference tensors, which torch refuses to change in place: but not in
        inference mode, and not behind its back (``.data``, ``.detach()``, ``.numpy()``). The contract finds strategies
        that do.
        """
        with torch.inference_mode():
            rows = self.dataset.rows(ids)
            inputs = view_of(self.dataset, view)[rows].to(self.like)
            return Samples(ids, inputs, {"labels": self.dataset.labels[rows].to(inputs.device)} if labels else {})

    def labels(self, ids: Tensor) -> Tensor:
        """Return the labels of the samples with these ids, int64, shape ``(N,)``."""
        return self.dataset.labels[self.dataset.rows(ids)]

    @cached_property
    def label_counts(self) -> dict[str, list[int]]:
        """Number of each client's training samples of each class, by client key."""
        if not self.holdings:
            return {}
        holdings, classes = self.holdings.values(), len(self.classes)
        owners = torch.arange(len(holdings)).repeat_interleave(torch.tensor([len(one.train) for one in holdings]))
        labels = self.labels(torch.cat([one.train for one in holdings]))
        counts = (owners * classes + labels).bincount(minlength=len(holdings) * classes).reshape(-1, classes)
        return dict(zip(self.holdings, counts.tolist(), strict=True))

    def private(self, key: str) -> Samples:
        """Return a client's training samples in its own view, with labels."""
        return self._held(key, "train")

    def private_in(self, key: str, view: str) -> Samples:
        """Return a client's training samples in one of the views that it holds, or in the teacher's, with labels.

        Raises:
            UserError: the client does not hold that view.
        """
        having = self.holdings[key].having
        if view not in having:
            raise UserError(f"{key}: expected a view that it holds ({', '.join(having)}), found {view!r}.")
        return self._remember((key, "private", view), lambda: self.samples(having[view], view))

    def local_test(self, key: str) -> Samples:
        """Return a client's own test samples in its own view, with labels; none if it has no test split."""
        return self._held(key, "test")

    def test(self, view: str) -> Samples:
        """Return the global test set in a view, with labels."""
        return self._cached("test", view, labels=True)

    def public(self, view: str, ids: Tensor | None = None) -> Samples:
        """Return the public samples with these ids (all without) in a view, without labels.

        All that ask for the same ones in a round share them (see :meth:`samples`).
        """
        everything = self._cached("public", view, labels=False)
        if ids is None or torch.equal(ids, self.splits.public):
            return everything
        recent = self._recent.setdefault(view, deque(maxlen=ROUNDS_SHARED))
        for some in recent:
            if torch.equal(some.ids, ids):
                return some
        with torch.inference_mode():  # see samples()
            recent.append(everything.by_id(ids))
        return recent[-1]

    def labelled_public(self, view: str) -> Samples | None:
        """Return the public samples in a view with labels, or None where the experiment keeps them unlabelled."""
        return self._cached("public", view, labels=True) if self.experiment.data.public_labels else None

    def pooled(self, view: str) -> Samples:
        """Return all clients' training samples that have a view, in it, with labels.

        A client that holds the view, or a part of it, gives those of which it has it; another one all that it was
        dealt, as far as the data set has the view of them.
        """
        ids = torch.cat([_having(holding, view) for holding in self.holdings.values()])
        return self.samples(with_view(self.dataset, ids, view), view)

    def public_subset(self, round_: int) -> Tensor:
        """Return the ids of a round's public subset, int64, shape ``(M,)``: the same at every party."""
        count, public = self.experiment.data.public_per_round, self.splits.public
        if count == 0 or count >= len(public):
            return public
        source = seeding.generator(self.experiment.seed, "public subset", round_)
        return public[torch.randperm(len(public), generator=source)[:count].sort().values]

    @cached_property
    def public_digest(self) -> str:
        """SHA-256 of the public-set contract: ordered ids, content, class list, and the labels if they are public."""
        digest = hashlib.sha256(repr(self.classes).encode())
        self._add(digest, self.splits.public, labels=self.experiment.data.public_labels)
        return digest.hexdigest()

    @cached_property
    def held_out_digest(self) -> str:
        """SHA-256 of the test and validation samples: ordered ids, content and labels."""
        digest = hashlib.sha256()
        for ids in (self.splits.test, self.splits.validation):
            self._add(digest, ids, labels=True)
        return digest.hexdigest()

    def _add(self, digest: "hashlib._Hash", ids: Tensor, *, labels: bool) -> None:
        rows = self.dataset.rows(ids)
        digest.update(ids.numpy().tobytes())
        for name in sorted(self.dataset.views):
            digest.update(name.encode() + self.dataset.views[name][rows].contiguous().numpy().tobytes())
        if labels:
            digest.update(self.dataset.labels[rows].numpy().tobytes())

    def _held(self, key: str, split: str) -> Samples:
        holding = self.holdings[key]
        return self._remember((key, split), lambda: self.samples(getattr(holding, split), holding.view))

    def _cached(self, split: str, view: str, *, labels: bool) -> Samples:
        ids = getattr(self.splits, split)
        return self._remember((split, view, labels), lambda: self.samples(ids, view, labels=labels))

    def _remember(self, key: Hashable, make: Callable[[], Samples]) -> Samples:
        """Build samples once per process: equal questions then share one tensor, which cohorts need not stack."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


def build(experiment: Experiment) -> Federation:
    """Build the federation of an experiment; cached, because every task of a process asks for it.

    Raises:
        UserError: the data cannot be divided as the experiment asks.
    """
    dataset = sources.load(experiment.data.name, experiment.data.root, download=experiment.data.download)
    return _build(key_of(experiment), dataset)


def key_of(experiment: Experiment) -> str:
    """Return all of an experiment that decides a federation, as JSON text."""
    return experiment.model_dump_json(include={"seed", "data", "federation", "train"})


def _having(holding: Holding, view: str) -> Tensor:
    """Return the ids of the samples dealt to a client, without those that it holds but lacks a view of, or a part."""
    ids = holding.dealt
    for name in (view, *parts(view)):
        ids = ids[torch.isin(ids, holding.having.get(name, ids))]
    return ids


@lru_cache(maxsize=2)
def _build(text: str, dataset: DataSet) -> Federation:
    experiment = Experiment.model_validate_json(text)
    if len(dataset.classes) < 2:  # noqa: PLR2004 - with one class there is nothing to tell apart
        where, found = f"in {experiment.data.name!r}", f"found only {dataset.classes[0]!r}"
        raise UserError(f"data: expected two classes or more {where}, {found}; add samples of another.")
    views = views_of(experiment)
    for name in views:
        view_of(dataset, name)  # refuse an unknown view now, not in the middle of a round
    for name in experiment.federation.missing:
        if name not in views:
            raise unknown("view", name, views, where="federation.missing")
    splits = split(experiment, dataset, complete=present(dataset, "+".join(views)))
    if experiment.federation.partition == "own":
        return Federation(experiment, *commons(experiment, dataset, splits), {})
    return Federation(experiment, dataset, splits, deal(experiment, dataset, splits.train))
