"""One call of every loss on outputs, on small fixed inputs, for the tests of what holds for all of them.

Another family of losses joins by a dictionary of its own here and its name in ``EXAMPLES``.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedkd import losses

Array = npt.NDArray[np.float64]

N, C = 5, 4

STUDENT = np.array([[0.3, -1.2, 2.0, 0.4], [1.5, 0.1, -0.4, -2.2], [-2.0, 0.7, 0.2, 1.1], [0.0, 0.9, -1.1, 0.6]])
TEACHER = np.array([[1.0, -0.5, 0.6, -1.4], [0.2, 0.4, -1.3, 0.9], [-0.7, 1.9, 0.5, -0.3], [2.2, -0.8, 0.1, 1.2]])
CLASSES = np.array([2, 0, 1, 3])
"""For formulas in NumPy: logits of four samples in four classes."""


def softmax(logits: Array) -> Array:
    """Return the softmax along the last dimension."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Array = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def kl(first: Array, second: Array) -> Array:
    """Return ``KL(first || second)`` along the last dimension."""
    divergence: Array = (first * np.log(first / second)).sum(axis=-1)
    return divergence


def tensor(seed: int, *shape: int) -> Tensor:
    """Return fixed float64 numbers of about unit size, far from the kinks of the losses."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


@dataclass(frozen=True)
class Example:
    """A loss and what it is called with.

    Attributes:
        loss: takes the arguments, and settings by name.
        arguments: by position; tensors, or lists of them.
        settings: by name.
        trained: places of the arguments that receive the gradient; all others are constant.
        permutable: whether one permutation of the samples leaves the loss as it is.
        batch: the dimension of the samples in each argument; ``None`` where it has none.
        least: the smallest value that the loss can have.
    """

    loss: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    trained: tuple[int, ...] = (0,)
    permutable: bool = True
    batch: tuple[int | None, ...] = (0, 0, 0)
    least: float = 0.0

    @property
    def call(self) -> Callable[..., Tensor]:
        return partial(self.loss, **self.settings)

    @property
    def names(self) -> list[str]:
        """Names of the arguments."""
        return list(inspect.signature(self.loss).parameters)[: len(self.arguments)]


_logits = tensor(1, N, C), tensor(2, N, C)
_probabilities = _logits[0], torch.softmax(_logits[1], dim=1)
_labels = torch.tensor([2, 0, 3, 1, 0])
_peers = tensor(3, 3, N, C)
_layers = [tensor(4, N, 3), tensor(5, N, 6)], [tensor(6, N, 3), tensor(7, N, 6)]
_statistics = tensor(8, N, 3, 2, 2), tensor(9, 3), tensor(10, 3).square()

RESPONSE = {
    "kd": Example(losses.kd, _logits),
    "kd-hot": Example(losses.kd, _logits, {"temperature": 4.0}),
    "logit_mae": Example(losses.logit_mae, _logits),
    "logit_mse": Example(losses.logit_mse, _logits),
    "soft_cross_entropy": Example(losses.soft_cross_entropy, _probabilities),
    "kl_to_probabilities": Example(losses.kl_to_probabilities, _probabilities, least=-1e-12),
    "binary_kd": Example(losses.binary_kd, _logits, {"temperature": 2.0}),
    "binary_kd-mean": Example(losses.binary_kd, _logits, {"classes": "mean"}),
}
DECOUPLED = {
    "dkd": Example(losses.dkd, (*_logits, _labels)),
    "not_true": Example(losses.not_true, (*_logits, _labels), {"temperature": 3.0}),
}
STANDARDIZED = {
    "dist": Example(losses.dist, _logits, {"beta": 2.0, "temperature": 2.0}),
    "logit_standardized_kd": Example(losses.logit_standardized_kd, _logits),
    "logit_standardized_kd-code": Example(losses.logit_standardized_kd, _logits, {"variant": "code"}),
}
LABELS = {
    "cross_entropy": Example(losses.cross_entropy, (_logits[0], _labels)),
    "label_smoothing": Example(losses.label_smoothing, (_logits[0], _labels)),
    "virtual_teacher": Example(losses.virtual_teacher, (_logits[0], _labels), least=-1e-12),
    "virtual_teacher-code": Example(losses.virtual_teacher, (_logits[0], _labels), {"variant": "code"}, least=-1e-12),
}
ONLINE = {
    "mutual": Example(losses.mutual, (_logits[0], _peers), batch=(0, 1)),
    "mutual-sum": Example(losses.mutual, (_logits[0], _peers), {"peers": "sum"}, batch=(0, 1)),
    "ensemble_mutual": Example(losses.ensemble_mutual, (_logits[0], _peers), batch=(0, 1)),
    "consistency": Example(losses.consistency, _logits),
    "consistency-kl": Example(losses.consistency, _logits, {"cost": "kl"}),
    "class_wise_self": Example(losses.class_wise_self, _logits),
}
RANKING = {
    "listnet": Example(losses.listnet, _logits, {"temperature": 2.0}),
    "listmle": Example(losses.listmle, _logits),
    "margin_mse": Example(losses.margin_mse, _logits),
    "ranking_distillation": Example(losses.ranking_distillation, _logits, {"k": 3}),
    "ranking_distillation-gap": Example(losses.ranking_distillation, _logits, {"k": 3, "discrepancy": 0.1}),
    "ranking_distillation-code": Example(
        losses.ranking_distillation, _logits, {"k": 3, "discrepancy": 0.1, "variant": "code"}
    ),
    "teacher_bounded_regression": Example(losses.teacher_bounded_regression, (*_logits, tensor(11, N, C))),
}
_both = (0, 1)
DATA_FREE = {
    "one_hot": Example(losses.one_hot, _logits[:1]),
    "information_entropy": Example(losses.information_entropy, _logits[:1], least=-np.log(C)),
    "information_entropy-code": Example(
        losses.information_entropy, _logits[:1], {"variant": "code"}, least=-np.log10(C)
    ),
    "activation": Example(losses.activation, _statistics[:1], least=-np.inf),
    "activation-paper": Example(losses.activation, _statistics[:1], {"variant": "paper"}, least=-np.inf),
    "batchnorm_statistics": Example(losses.batchnorm_statistics, _statistics, batch=(0, None, None)),
    "dfad_generator": Example(losses.dfad_generator, _logits, trained=_both, least=-np.inf),
    "dfad_generator-code": Example(losses.dfad_generator, _logits, {"variant": "code"}, trained=_both, least=-np.inf),
    "zskt_generator": Example(losses.zskt_generator, _logits, {"temperature": 2.0}, trained=_both, least=-np.inf),
    "zskt_generator-code": Example(losses.zskt_generator, _logits, {"variant": "code"}, trained=_both, least=-np.inf),
    "metadata_reconstruction": Example(losses.metadata_reconstruction, _layers),
}
EXAMPLES = {**RESPONSE, **DECOUPLED, **STANDARDIZED, **LABELS, **ONLINE, **RANKING, **DATA_FREE}

NO_LOSSES = {"ema_update", "ramp_up", "sample_activations"}
"""Public functions of these modules that are no losses: their own tests say what holds for them."""
