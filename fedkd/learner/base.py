"""What the client's and the server's half have in common: models by name, and the asking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedkd import seeding
from fedkd.config import TrainSettings
from fedkd.data.federation import Federation
from fedkd.data.samples import Samples
from fedkd.data.views import parts
from fedkd.errors import UserError
from fedkd.knowledge import Weights
from fedkd.learner.model import Model
from fedkd.learner.requests import Ask, Fit, Loss, Objective, OnTarget, Predict
from fedkd.optimisers import Optimiser


class OnView(NamedTuple):
    """A model on another view than the one that its client is dealt as a whole.

    Attributes:
        architecture: of the model.
        view: one of those that the client holds, or the teacher's.
    """

    architecture: str
    view: str


@dataclass(frozen=True)
class ClientCard:
    """What the server knows of a client.

    Attributes:
        key: the client's name, the same in simulation and in deployment.
        architecture: of its student.
        view: the view of the samples that it holds; several joined, such as ``image+audio``.
        num_samples: size of its private training shard.
        teacher_view: the view that its teacher looks at while it trains; None: its own.
    """

    key: str
    architecture: str
    view: str
    num_samples: int
    teacher_view: str | None = None

    @property
    def cohort(self) -> str:
        """Name of the clients with the same architecture and view."""
        return f"{self.architecture}+{self.view}"

    @property
    def views(self) -> tuple[str, ...]:
        """The views that it holds, singly."""
        return parts(self.view)


def card_of(federation: Federation, key: str) -> ClientCard:
    """Return what the server may know of a client."""
    holding = federation.holdings[key]
    teacher_view = federation.experiment.federation.teacher_view
    return ClientCard(key, holding.architecture, holding.view, len(holding.train), teacher_view)


@dataclass
class Learner:
    """A party that trains models: the base of :class:`Client` and :class:`Server`.

    Attributes:
        models: the party's models, by name.
        state: further tensors that the strategy keeps from round to round, by name.
        round: number of this round, from 1; 0 before the first.
        seed: seed of everything random in this party and round.
        train: how models are trained unless the strategy says otherwise.
        ask: answers requests.
        steps: gradient steps of this round; of a party that has a model ``student``, those of fits that train it.
    """

    models: dict[str, Model]
    state: dict[str, Tensor]
    round: int
    seed: int
    train: TrainSettings
    ask: Ask
    steps: int = field(default=0, init=False)
    _fits: int = field(default=0, init=False)
    _predictions: int = field(default=0, init=False)

    def fit(
        self,
        samples: Samples,
        loss: Loss | None = None,
        *,
        objective: Objective | None = None,
        models: Sequence[str] = ("student",),
        epochs: int | None = None,
        batch_size: int | None = None,
        optimiser: Optimiser | None = None,
        frozen: Mapping[str, Tensor | Model] | None = None,
    ) -> None:
        """Train models, and keep the result under their names.

        Args:
            samples: what to train on; nothing happens if there are none.
            loss: pure function of one model's logits ``(B, C)`` and the samples' only target, returning a scalar.
            objective: in place of ``loss``, pure function of all networks, the batch, and the frozen tensors.
            models: names of the models to train; exactly one with ``loss``.
            epochs: passes over the samples; the experiment's local epochs if absent.
            batch_size: samples per step; the experiment's if absent.
            optimiser: the experiment's if absent; always started afresh.
            frozen: what the objective may use and nothing changes: tensors, and models (teachers, in evaluation mode),
                which it finds among the networks.

        Raises:
            UserError: neither or both of ``loss`` and ``objective`` are given, or the samples have no single target.
        """
        constants = _constants(frozen or {}, models)
        self._fits += 1
        request = Fit(
            models={name: self.models[name] for name in models},
            samples=samples,
            objective=_objective(samples, loss, objective, models),
            epochs=self.train.local_epochs if epochs is None else epochs,
            batch_size=self.train.batch_size if batch_size is None else batch_size,
            optimiser=optimiser or optimiser_of(self.train),
            seed=seeding.derive_seed(self.seed, "fit", self._fits),
            frozen={name: value for name, value in constants.items() if isinstance(value, Tensor)},
            teachers={name: value for name, value in constants.items() if isinstance(value, Model)},
            autocast=self.train.autocast,
        )
        if len(samples) and request.epochs:
            self.models.update(self.ask(request))
            if "student" in models or "student" not in self.models:
                self.steps += request.steps

    def logits(self, samples: Samples, model: str = "student") -> Tensor:
        """Return a model's logits on the samples, shape ``(N, C)``, in evaluation mode."""
        outputs: Tensor = self.ask(self._prediction(self.models[model], samples))
        return outputs

    def features(self, samples: Samples, model: str = "student") -> Tensor:
        """Return a model's features of the samples, shape ``(N, d)``, in evaluation mode."""
        outputs: Tensor = self.ask(replace(self._prediction(self.models[model], samples), output="features"))
        return outputs

    def weights(self, model: str = "student") -> Weights:
        """Return a model's weights, to be sent."""
        return Weights(self.models[model].tensors)

    def load(self, weights: Weights, model: str = "student") -> None:
        """Replace a model's weights by received ones."""
        like = self.models[model].tensors
        self.models[model] = self.models[model].with_tensors(
            {name: t.to(like[name]) for name, t in weights.tensors.items()}
        )

    def generator(self, purpose: str) -> torch.Generator:
        """Return a fresh random generator, keyed by run, round, party and purpose."""
        return seeding.generator(self.seed, purpose)

    def _prediction(self, model: Model, samples: Samples) -> Predict:
        """Return the request for a model's logits on samples, on a seed of its own."""
        self._predictions += 1
        seed = seeding.derive_seed(self.seed, "predict", self._predictions)
        return Predict(model, samples.inputs, seed=seed)


def optimiser_of(train: TrainSettings) -> Optimiser:
    """Return the experiment's optimiser."""
    return Optimiser(train.optimizer, train.lr, train.momentum, train.weight_decay)


def _constants(frozen: Mapping[str, Tensor | Model], models: Sequence[str]) -> Mapping[str, Tensor | Model]:
    for name, value in frozen.items():
        if not isinstance(value, Tensor | Model):
            raise UserError(f"fit: frozen {name!r}: expected a tensor or a model, found {type(value).__name__}.")
        if name in models:
            raise UserError(f"fit: frozen {name!r}: expected a name that no trained model has; choose another.")
    return frozen


def _objective(samples: Samples, loss: Loss | None, objective: Objective | None, models: Sequence[str]) -> Objective:
    if (loss is None) == (objective is None):
        raise UserError("fit: expected either a loss or an objective, found neither or both.")
    if objective is not None:
        return objective
    if len(samples.targets) != 1 or len(models) != 1:
        found = f"{len(samples.targets)} targets and {len(models)} models"
        raise UserError(
            f"fit: a loss needs samples with exactly one target and one model, found {found}; use objective=."
        )
    assert loss is not None  # noqa: S101 - said to the type checker, established above
    return OnTarget(loss, models[0], next(iter(samples.targets)))
