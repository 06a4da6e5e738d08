"""Answer one request of one client: the plain loop that everything vectorised is held against.

Where a CPU has much to do for a batch, the weights of convolutions lie *channels last*: torch's kernels want them so.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedkd.learner.model import BoundNetwork, Model, Network, below
from fedkd.learner.requests import Batch, Fit, Networks, Predict, Tensors
from fedkd.learner.worth import draws, multiplications, worth_it
from fedkd.losses import values_unchecked
from fedkd.models import ModelSpec
from fedkd.seeding import derive_seed, generators_restored, seed_everything

T = TypeVar("T")


Arranged = Callable[[Tensors], Tensors]
PREDICT_ROWS = 1024
FEWEST_ROWS = 64
LARGEST_PREDICTION = 2.5e8
"""Multiplications for which a CPU predicts at a time: with more, what comes of each layer no longer fits its caches."""
_WEIGHT_AXES = 4  # output channels, input channels, height, width


def batches(samples: int, epochs: int, batch_size: int, seed: int) -> list[Tensor]:
    """Return the row numbers of every step, int64, each of shape ``(B,)`` or smaller at the end of an epoch.

    Every epoch visits every sample once, in an order of its own. A last batch of one sample joins the one before it:
    BatchNorm cannot train on a single sample.

    Args:
        samples: number of samples ``N``; 0 gives no step.
        epochs: passes over the samples.
        batch_size: ``B``.
        seed: decides the orders.
    """
    source = torch.Generator().manual_seed(seed)
    steps: list[Tensor] = []
    for _ in range(epochs if samples else 0):
        epoch = list(torch.randperm(samples, generator=source).split(batch_size))
        if batch_size > 1 and len(epoch) > 1 and len(epoch[-1]) == 1:
            epoch[-2:] = [torch.cat(epoch[-2:])]
        steps += epoch
    return steps


def fit(request: Fit) -> dict[str, Model]:
    """Train the request's models, and return them by name; the given models stay as they are."""
    inputs = request.samples.inputs
    devices = [inputs.device] if inputs.is_cuda else []
    large = inputs.device.type == "cpu" and not (request.autocast or small_steps(request))
    with torch.enable_grad(), torch.random.fork_rng(devices=devices), values_unchecked():
        return _laid_out(lambda arranged: _loop(request, arranged), large)


def small_steps(request: Fit) -> bool:
    """Whether the request's steps are small: faster when many clients' are taken together."""
    models = [*request.models.values(), *request.teachers.values()]
    return worth_it([model.spec for model in models], request.batch_size, request.samples.inputs.device)


def _laid_out(compute: Callable[[Arranged], T], large: bool) -> T:
    """Compute with weights that are arranged channels last if there is much to do.

    A model or objective that cannot take them, such as one that takes a ``view`` of images, gets them as usual.
    """
    if large:
        try:
            return compute(_channels_last)
        except RuntimeError as error:  # of what fails either way, the second failure tells
            if is_of_memory(error):  # a machine with more would compute the other bits
                raise
    return compute(dict)


def is_of_memory(error: BaseException) -> bool:
    """Whether memory was short: of a GPU, of Python, or of torch on a CPU, which has no type of error for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _channels_last(tensors: Tensors) -> dict[str, Tensor]:
    last = torch.channels_last
    return {name: t.contiguous(memory_format=last) if t.dim() == _WEIGHT_AXES else t for name, t in tensors.items()}


def _loop(request: Fit, arranged: Arranged) -> dict[str, Model]:
    seed_everything(derive_seed(request.seed, "modules"))  # dropout draws from a global generator
    parameters, others = split(request.models)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in arranged(parameters).items()}
    others = {name: tensor.clone() for name, tensor in arranged(others).items()}
    teachers = _teachers(request, {name: arranged(tensors) for name, tensors in teacher_tensors(request).items()})
    frozen = {name: t.clone() for name, t in request.frozen.items()}
    state = request.optimiser.start(parameters)
    schedule = batches(len(request.samples), request.epochs, request.batch_size, request.seed)
    with _bound(request, {**parameters, **others}) as trained:
        for step, rows in enumerate(schedule, start=1):
            loss = _loss(request, {**trained, **teachers}, Batch(*batch_at(request, rows)), frozen)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            request.optimiser.step(parameters, dict(zip(parameters, gradients, strict=True)), state, step)
        tensors = {**parameters, **_others(trained)}
    return join(request.models, {name: tensor.detach().contiguous() for name, tensor in tensors.items()})


def _loss(request: Fit, networks: Networks, batch: Batch, frozen: Tensors) -> Tensor:
    """Return the objective of one batch.

    Raises:
        ValueError: it is something else than one number that depends on the models.
    """
    with _precision(request):
        loss: object = request.objective(networks, batch, frozen)
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    found = f"{type(loss).__name__} {loss!r:.40}"
    if isinstance(loss, Tensor):
        found = f"shape {tuple(loss.shape)}" if loss.numel() != 1 else "a tensor that does not: is it detached?"
    raise ValueError(f"objective: expected one number, as a tensor that depends on the models, found {found}.")


def _precision(request: Fit) -> AbstractContextManager[Any]:
    """Return the context in which an objective is computed; none costs nothing."""
    if not request.autocast:
        return nullcontext()
    return torch.autocast(request.samples.inputs.device.type, torch.bfloat16)


@contextmanager
def _bound(request: Fit, tensors: Tensors) -> Iterator[dict[str, BoundNetwork]]:
    """Bind tensors, named ``model/parameter``, to the networks that are trained, and let go of them at the end."""
    networks = {
        name: BoundNetwork(model.spec, below(tensors, f"{name}/"), number=number)
        for number, (name, model) in enumerate(request.models.items())
    }
    try:
        yield networks
    finally:
        for network in networks.values():
            network.release()


def _teachers(request: Fit, tensors: Mapping[str, Tensors]) -> Networks:
    return {
        name: Network(model.spec, tensors[name], number=number)
        for number, (name, model) in enumerate(request.teachers.items())
    }


def _others(trained: Mapping[str, BoundNetwork]) -> dict[str, Tensor]:
    return {f"{name}/{key}": t for name, network in trained.items() for key, t in network.others.items()}


@torch.no_grad()
def predict(request: Predict) -> Tensor:
    """Return logits ``(N, C)`` or features ``(N, d)`` of the request's model in evaluation mode.

    A model that draws even then does so from the request's own seed.
    """
    size, own_seed = rows_at_once(request.model.spec, request.inputs.device), draws(request.model.spec)

    def outputs(arranged: Arranged) -> Tensor:
        if own_seed:
            seed_everything(request.seed)
        network = Network(request.model.spec, arranged(request.model.tensors))
        half = network.features if request.output == "features" else network
        return torch.cat([half(rows) for rows in request.inputs.split(size)])

    with generators_restored() if own_seed else nullcontext():
        return _laid_out(outputs, size < PREDICT_ROWS)


def rows_at_once(spec: ModelSpec, device: torch.device) -> int:
    """Return the number of samples in each of a prediction's batches: fewer where a CPU has much to do for each."""
    if device.type != "cpu":
        return PREDICT_ROWS
    return min(PREDICT_ROWS, max(FEWEST_ROWS, int(LARGEST_PREDICTION // max(1, multiplications(spec)))))


def answer(request: Fit | Predict) -> dict[str, Model] | Tensor:
    """Answer one request."""
    return fit(request) if isinstance(request, Fit) else predict(request)


def prepare(request: Fit) -> None:
    """Build the modules that a request's models run in: within ``vmap`` that cannot be, since it draws numbers."""
    with _bound(request, {name: tensor for tensors in split(request.models) for name, tensor in tensors.items()}):
        _teachers(request, teacher_tensors(request))


def batch_at(request: Fit, rows: Tensor) -> tuple[Tensor, Tensors]:
    """Return inputs ``(B, ...)`` and targets of the samples at these rows."""
    samples = request.samples
    rows = rows.to(samples.inputs.device)
    return samples.inputs[rows], {name: values[rows] for name, values in samples.targets.items()}


def teacher_tensors(request: Fit) -> dict[str, Tensors]:
    """Return the tensors of the frozen models, by model name."""
    return {name: model.tensors for name, model in request.teachers.items()}


def loss_of(
    request: Fit,
    parameters: Tensors,
    others: Tensors,
    inputs: Tensor,
    targets: Tensors,
    frozen: Tensors,
    teachers: Mapping[str, Tensors],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the objective of one batch and the other tensors after it: a pure function, to be vectorised over clients.

    Args:
        request: gives architectures and objective only.
        parameters: trained tensors of all models, named ``model/parameter``.
        others: their other tensors, named likewise.
        inputs: shape ``(B, ...)``.
        targets: each ``(B, ...)``.
        frozen: constant tensors.
        teachers: tensors of the frozen models, by model name.

    Raises:
        NotImplementedError: a module keeps something that is none of its tensors, and is all clients' at once.
    """
    with _bound(request, {**parameters, **{name: tensor.clone() for name, tensor in others.items()}}) as trained:
        networks = {**trained, **_teachers(request, teachers)}
        loss = _loss(request, networks, Batch(inputs, targets), frozen)
        if part := next((network.changed for network in networks.values() if network.changed), ""):
            raise NotImplementedError(f"{part} is changed by the model itself")
        return loss, _others(trained)


def split(models: Mapping[str, Model]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return all trained tensors and all others of several models, named ``model/parameter``."""
    parameters = {f"{name}/{key}": t for name, model in models.items() for key, t in model.parameters.items()}
    others = {f"{name}/{key}": t for name, model in models.items() for key, t in model.others.items()}
    return parameters, others


def join(models: Mapping[str, Model], tensors: Tensors) -> dict[str, Model]:
    """Return the models with these tensors: the inverse of :func:`split`."""
    return {name: model.with_tensors(below(tensors, f"{name}/")) for name, model in models.items()}
