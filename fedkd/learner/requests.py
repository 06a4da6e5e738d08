"""What a strategy's code asks for: requests are plain data, so that equal ones can be answered together."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Literal

from torch import Tensor

from fedkd.data.samples import Samples
from fedkd.learner.model import Model, Network
from fedkd.optimisers import Optimiser

Networks = Mapping[str, Network]
Tensors = Mapping[str, Tensor]
Objective = Callable[[Networks, "Batch", Tensors], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """Some samples of one client, as its objective sees them.

    Attributes:
        inputs: shape ``(B, ...)``.
        targets: named per-sample targets, each ``(B, ...)``.
    """

    inputs: Tensor
    targets: Tensors

    @property
    def labels(self) -> Tensor:
        """The class labels, int64, shape ``(B,)``."""
        return self.targets["labels"]


@dataclass(frozen=True)
class OnTarget:
    """The objective of a plain fit: a loss between one model's logits and one target.

    Attributes:
        loss: pure function of logits ``(B, C)`` and target ``(B, ...)``.
        model: name of the model.
        target: name of the target.
    """

    loss: Loss
    model: str
    target: str

    def __call__(self, networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
        """Return the loss of one batch; ``frozen`` is not used."""
        return self.loss(networks[self.model](batch.inputs), batch.targets[self.target])


@dataclass(frozen=True)
class Fit:
    """Minimise an objective; answered by the trained models, by name.

    Attributes:
        models: the models to train, by the name under which the objective finds them.
        samples: what they are trained on.
        objective: pure function of the networks, one batch, and the frozen tensors; returns a scalar.
        epochs: passes over the samples.
        batch_size: samples per step.
        optimiser: started afresh.
        seed: decides the order of the samples.
        frozen: tensors that the objective may use, constant during the fit.
        teachers: models that the objective may use, in evaluation mode and never trained.
        autocast: compute the objective in bfloat16 where torch finds it safe.
    """

    models: Mapping[str, Model]
    samples: Samples
    objective: Objective
    epochs: int
    batch_size: int
    optimiser: Optimiser
    seed: int
    frozen: Tensors = field(default_factory=dict)
    teachers: Mapping[str, Model] = field(default_factory=dict)
    autocast: bool = False

    @property
    def steps(self) -> int:
        """Number of gradient steps."""
        return steps_of(len(self.samples), self.epochs, self.batch_size)

    @property
    def key(self) -> Hashable:
        """Equal keys can be answered in one vectorised call: same models, shapes, objective and settings."""
        tensors = {**self.samples.targets, **{f"frozen {name}": t for name, t in self.frozen.items()}}
        return (
            tuple((name, model.spec) for name, model in self.models.items()),
            tuple((name, model.spec) for name, model in self.teachers.items()),
            (tuple(self.samples.inputs.shape[1:]), self.samples.inputs.dtype),
            tuple((name, tuple(t.shape[name in self.samples.targets :]), t.dtype) for name, t in tensors.items()),
            identity(self.objective),
            (self.epochs, self.batch_size, self.optimiser, self.autocast),
        )


def steps_of(samples: int, epochs: int, batch_size: int) -> int:
    """Return the number of gradient steps of a fit: a last batch of one sample joins the one before it.

    Args:
        samples: number of samples.
        epochs: passes over them.
        batch_size: samples per step.
    """
    full, rest = divmod(samples, batch_size)
    joined = rest == 1 and full > 0 and batch_size > 1
    return epochs * (full + (rest > 0) - joined)


@dataclass(frozen=True)
class Predict:
    """Evaluate a model; answered by logits ``(N, C)`` or features ``(N, d)``.

    Attributes:
        model: used in evaluation mode.
        inputs: shape ``(N, ...)``.
        output: which half of the model to stop after.
        seed: of what a model draws even in evaluation mode.
    """

    model: Model
    inputs: Tensor
    output: Literal["logits", "features"] = "logits"
    seed: int = 0

    @property
    def key(self) -> Hashable:
        """Equal keys can be answered in one vectorised call."""
        return (self.model.spec, tuple(self.inputs.shape), self.output)


Request = Fit | Predict
Answer = Any
Ask = Callable[[Request], Answer]


def identity(function: Any) -> Hashable:  # noqa: ANN401 - any callable
    """Return a key that is equal for two functions that compute the same thing.

    Equal are: methods of one object, partials with equal arguments, and functions, lambdas included, made by the same
    code over equal values. A function that cannot be compared is equal to itself only, and so runs alone.
    """
    try:
        return _identity(function)
    except Exception:  # functions that hold each other, or what a user's own comparisons raise
        return ("object", id(function))


def _identity(function: Any) -> Hashable:  # noqa: ANN401
    if isinstance(function, partial):
        return ("partial", _identity(function.func), _key(function.args), _key(function.keywords))
    if isinstance(function, MethodType):
        return ("method", function.__func__, id(function.__self__))
    if isinstance(function, FunctionType):
        return _function_key(function)
    if isinstance(function, OnTarget):
        return ("on target", _identity(function.loss), function.model, function.target)
    return _key(function)


def _function_key(function: FunctionType) -> Hashable:
    try:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # a name that the code around the function has not given a value yet
        return ("object", id(function))
    if any(cell is function for cell in cells):
        return ("object", id(function))
    defaults = _key(function.__defaults__), _key(function.__kwdefaults__)
    return ("function", function.__code__, id(function.__globals__), defaults, _key(cells))


def _key(value: Any) -> Hashable:  # noqa: ANN401
    if isinstance(value, Mapping):
        return tuple((name, _key(item)) for name, item in sorted(value.items(), key=lambda pair: repr(pair[0])))
    if isinstance(value, tuple | list):
        return tuple(_key(item) for item in value)
    if isinstance(value, Tensor):
        return ("object", id(value))  # equal tensors may differ in place: only the same object is the same
    if isinstance(value, partial | MethodType | FunctionType):
        return _identity(value)
    try:
        hash(value)
    except TypeError:
        return ("object", id(value))
    # 0.0 and -0.0 are equal, but what they lead to is not.
    return (type(value), value.hex() if isinstance(value, float) else value)
