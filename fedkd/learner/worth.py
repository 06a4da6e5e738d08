"""Whether it is worth while to train clients together: their models must allow it, and their steps be small."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fedkd.models import ModelSpec, build_aside, kept, skeleton
from fedkd.seeding import drawn_so_far, generators_restored, seed_cpu

LARGEST_STEP = {"cpu": 8e6, "cuda": 1.6e9}
"""Multiplications of one client's step (forward) up to which vectorising was faster, by type of device: see decision 5.
On a GPU no larger step was tried."""
FILLERS = 2
"""Fewest clients at the end of each step whose results are dropped: an objective may apply such functions to logits."""
_LAST = 31
_UNEVEN = frozenset(
    [
        *("gelu", "silu", "elu", "celu", "selu", "mish", "softplus", "sigmoid", "logit", "log_sigmoid_forward"),
        *("pow", "exp2", "sinh", "cosh", "atanh", "atan2", "hypot", "logaddexp", "logaddexp2", "native_batch_norm"),
    ]
)
"""Functions whose last elements torch computes otherwise (tried, in torch 2.15)."""


def worth_it(specs: Sequence[ModelSpec], batch_size: int, device: torch.device) -> bool:
    """Whether steps on these models are small enough to be faster when they are vectorised.

    A pure function of what the experiment says, so that a run's bits never depend on the machine.
    """
    largest = LARGEST_STEP.get(device.type, LARGEST_STEP["cpu"])
    return batch_size * sum(multiplications(spec) for spec in specs) <= largest


def multiplications(spec: ModelSpec) -> int:
    """Return the number of multiplications of a forward pass of one sample, by torch's own formulas.

    It must not depend on what torch computes a layer with, of which some have no formula.
    """
    return _looked_at(spec).multiplications


def fillers(spec: ModelSpec) -> int:
    """Return how many more clients a step takes, so that no member has the last elements of a tensor.

    Of some functions torch computes these otherwise, fewer than 32. After convolutions, K clients are channels: of the
    last elements each has as many as there are channels.
    """
    return max(FILLERS, -(-_LAST // _looked_at(spec).narrowest))


def draws(spec: ModelSpec) -> bool:
    """Whether models of this architecture draw random numbers even in evaluation mode."""
    return _looked_at(spec).draws


class _Look(NamedTuple):
    multiplications: int
    narrowest: int
    draws: bool


@kept
def _looked_at(spec: ModelSpec) -> _Look:
    """Run a model once, on one sample, in evaluation mode: one that no other run notices."""
    model, counter = build_aside(spec, seed=0).eval(), _Counter()
    with generators_restored():
        seed_cpu(0)  # a model that draws may compute more or less by what it draws
        before = drawn_so_far()
        with _layer_by_layer(), counter, torch.no_grad():
            model(torch.zeros(1, *spec.sample_shape))
        return _Look(counter.multiplications, counter.narrowest, drawn_so_far() != before)


@contextmanager
def _layer_by_layer() -> Iterator[None]:
    """Have recurrent layers and transformers computed by operations that have formulas."""
    mha, mkldnn = torch.backends.mha, torch.backends.mkldnn
    before = mha.get_fastpath_enabled(), mkldnn.set_flags(_enabled=False, _allow_tf32=None)[0]
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(before[0])
        mkldnn.set_flags(_enabled=before[1], _allow_tf32=None)


class _Counter(TorchDispatchMode):
    """Counts what torch's ``FlopCounterMode`` counts, halved, without a second and 80 MB for an import of its own.

    And the fewest channels, or features, to which a function is applied whose last elements torch computes otherwise.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.multiplications, self.narrowest = 0, _LAST

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.multiplications += count(*args, **(kwargs or {}), out_val=out) // 2
        first = out[0] if isinstance(out, tuple) and out else out
        if func._overloadpacket.__name__.rstrip("_") in _UNEVEN and isinstance(first, torch.Tensor) and first.numel():
            self.narrowest = min(self.narrowest, first.shape[1] if first.dim() > 1 else 1)
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from wrapping the method above: that is what imports its compiler."""
        return False


def vectorisable(spec: ModelSpec, *, autocast: bool = False) -> bool:
    """Whether models of this architecture may be trained together."""
    return not unfit_part(spec, autocast=autocast)


def unfit_part(spec: ModelSpec, *, autocast: bool = False) -> str:
    """Return the kind of module for which models of this architecture cannot be trained together; nothing if they can.

    Dropout draws for the cohort, not for the client; and torch cannot vectorise BatchNorm over inputs in bfloat16.
    """
    unfit: tuple[type[nn.Module], ...] = (nn.modules.dropout._DropoutNd,)
    if autocast:
        unfit = (*unfit, nn.modules.batchnorm._BatchNorm)
    return next((type(module).__name__ for module in skeleton(spec).modules() if isinstance(module, unfit)), "")
