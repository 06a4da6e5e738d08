"""One call of every loss, on small fixed inputs: the registry of what is tested for all of them.

A new loss joins by an entry in the dictionary of its module. Numbers are of about unit size, and far from the kinks.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fedkd import losses
from tests.losses.conftest import draw

N, C = 5, 4


def tensor(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(draw(seed, *shape))


@dataclass(frozen=True)
class Example:
    """A loss and what it is called with.

    Attributes:
        loss: takes the arguments, and settings by name.
        arguments: by position; tensors, or lists and tuples of them.
        settings: by name, tensors among them.
        trained: places of the arguments that receive the gradient; all others are constant.
        permutable: whether one permutation of the samples leaves the loss as it is.
        batch: in each argument the dimensions of the samples, one, two or none.
        per_sample: settings with one entry for each sample.
        least: the smallest value that the loss can have.
        free: places of the arguments whose width or size may differ from the student's.
        any_rank: whether features may have any number of dimensions.
        rounding: how much coarser than others' the result may be in low precision.
        steepest: bound of the gradient where arguments are all alike.
    """

    loss: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    trained: tuple[int, ...] = (0,)
    permutable: bool = True
    batch: tuple[tuple[int, ...], ...] = ((0,), (0,), (0,))
    per_sample: tuple[str, ...] = ()
    least: float = 0.0
    free: tuple[int, ...] = ()
    any_rank: bool = False
    rounding: float = 1.0
    steepest: float = 1e6

    @property
    def call(self) -> Callable[..., Tensor]:
        return partial(self.loss, **self.settings)

    @property
    def names(self) -> list[str]:
        """Names of the arguments."""
        return list(inspect.signature(self.loss).parameters)[: len(self.arguments)]

    def for_samples(self, change: Callable[[Tensor, int], Tensor]) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        """Return the call and its arguments with a change along every dimension of samples."""

        def changed(value: Any, dims: tuple[int, ...]) -> Any:
            for dim in dims:
                value = tree_map(lambda leaf, dim=dim: change(leaf, dim), value)
            return value

        arguments = tuple(changed(value, dims) for value, dims in zip(self.arguments, self.batch, strict=False))
        cut = {name: changed(self.settings[name], (0,)) for name in self.per_sample}
        return partial(self.loss, **{**self.settings, **cut}), arguments


# --- on outputs

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
    "dist": Example(losses.dist, _logits, {"beta": 2.0, "temperature": 2.0}, steepest=1e9),
    "logit_standardized_kd": Example(losses.logit_standardized_kd, _logits),
    "logit_standardized_kd-code": Example(losses.logit_standardized_kd, _logits, {"variant": "code"}),
}
LABELS = {
    "cross_entropy": Example(losses.cross_entropy, (_logits[0], _labels)),
    "label_smoothing": Example(losses.label_smoothing, (_logits[0], _labels)),
    "virtual_teacher": Example(losses.virtual_teacher, (_logits[0], _labels), least=-1e-12, rounding=10),
    "virtual_teacher-code": Example(losses.virtual_teacher, (_logits[0], _labels), {"variant": "code"}, least=-1e-12),
}
ONLINE = {
    "mutual": Example(losses.mutual, (_logits[0], _peers), batch=((0,), (1,))),
    "mutual-sum": Example(losses.mutual, (_logits[0], _peers), {"peers": "sum"}, batch=((0,), (1,))),
    "ensemble_mutual": Example(losses.ensemble_mutual, (_logits[0], _peers), batch=((0,), (1,))),
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
    "batchnorm_statistics": Example(losses.batchnorm_statistics, _statistics, batch=((0,), (), ())),
    "dfad_generator": Example(losses.dfad_generator, _logits, trained=_both, least=-np.inf),
    "dfad_generator-code": Example(losses.dfad_generator, _logits, {"variant": "code"}, trained=_both, least=-np.inf),
    "zskt_generator": Example(losses.zskt_generator, _logits, {"temperature": 2.0}, trained=_both, least=-np.inf),
    "zskt_generator-code": Example(losses.zskt_generator, _logits, {"variant": "code"}, trained=_both, least=-np.inf),
    "metadata_reconstruction": Example(losses.metadata_reconstruction, _layers),
}

# --- on features

_maps = tensor(1, N, 3, 4, 4), tensor(2, N, 6, 6, 6)
_same_maps = tensor(3, N, 3, 5, 5), tensor(4, N, 3, 5, 5)
_flows = (tensor(5, N, 2, 6, 6), tensor(6, N, 3, 4, 4)), (tensor(7, N, 2, 3, 3), tensor(8, N, 3, 3, 3))
_rows = tensor(9, N, 4), tensor(10, N, 7)
_same_rows = tensor(11, N, 4), tensor(12, N, 4)
_margin = torch.tensor([-0.5, -0.1, -1.0], dtype=torch.float64)
_present = torch.tensor([True, False, True, True])
_variance = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
_memory = losses.CrdMemory(
    torch.nn.functional.normalize(tensor(16, 9, 4)),
    torch.nn.functional.normalize(tensor(17, 9, 4)),
    torch.tensor(15.0, dtype=torch.float64),
    torch.tensor(12.0, dtype=torch.float64),
)
_contrast = torch.tensor([[0, 3, 7], [4, 1, 2], [8, 0, 1], [2, 5, 5], [6, 7, 0]])
_graph = torch.tensor(
    [[0, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]], dtype=torch.bool
)

FEATURE = {
    "hint": Example(losses.hint, _same_maps, any_rank=True),
    "cross_modal_l2": Example(losses.cross_modal_l2, _same_rows, any_rank=True),
    "cross_modal_l2-code": Example(losses.cross_modal_l2, _same_maps, {"variant": "code"}, any_rank=True),
    "activation_boundary": Example(losses.activation_boundary, _same_maps, any_rank=True),
    "ofd": Example(losses.ofd, (*_same_maps, _margin), batch=((0,), (0,), ())),
    "review_kd": Example(losses.review_kd, _same_maps),
    "review_kd-stages": Example(
        losses.review_kd, tuple([one, tensor(k, N, 2, 2, 2)] for k, one in enumerate(_same_maps))
    ),
    "prototype": Example(
        losses.prototype, (_same_rows[0], tensor(13, C, 4), _present, _labels), batch=((0,), (), (), (0,))
    ),
}
FEATURE_MAPS = {
    "attention": Example(losses.attention, _maps, free=(1,)),
    "attention-paper": Example(losses.attention, _maps, {"variant": "paper", "power": 4}, free=(1,)),
    "factor_transfer": Example(losses.factor_transfer, _same_maps, free=(1,)),
    "factor_transfer-squares": Example(losses.factor_transfer, _same_maps, {"norm": 2}, free=(1,)),
    "factor_transfer-paper": Example(losses.factor_transfer, _same_maps, {"variant": "paper"}, free=(1,)),
    "factor_transfer-paper2": Example(losses.factor_transfer, _same_maps, {"variant": "paper", "norm": 2}, free=(1,)),
    "factor_transfer-attention": Example(losses.factor_transfer, _maps, {"variant": "attention"}, free=(1,)),
    "fsp": Example(losses.fsp, _flows, free=(1,)),
    "fsp-paper": Example(losses.fsp, _flows, {"variant": "paper"}, free=(1,)),
    "nst": Example(losses.nst, _maps, free=(1,), least=-1e-12),
}
RELATION = {
    "rkd_distance": Example(losses.rkd_distance, _rows, free=(1,)),
    "rkd_angle": Example(losses.rkd_angle, _rows, free=(1,)),
    "similarity_preserving": Example(losses.similarity_preserving, _maps, free=(1,)),
    "correlation_congruence": Example(losses.correlation_congruence, _rows, free=(1,)),
    "correlation_congruence-delta": Example(
        losses.correlation_congruence, _same_rows, {"variant": "delta"}, permutable=False, any_rank=True
    ),
    "pkt": Example(losses.pkt, _rows, free=(1,), least=-1e-12),
    "local_structure": Example(losses.local_structure, _rows, free=(1,)),
    "local_structure-rbf": Example(
        losses.local_structure, (*_rows, _graph), {"kernel": "rbf"}, free=(1,), batch=((0,), (0,), (0, 1))
    ),
    "local_structure-code": Example(losses.local_structure, _rows, {"variant": "code"}, free=(1,), rounding=10),
    "local_structure-linear": Example(losses.local_structure, _rows, {"kernel": "linear"}, free=(1,)),
    "triplet": Example(losses.triplet, (*_same_rows, tensor(14, N, 4))),
    "triplet-raw": Example(losses.triplet, (*_same_rows, tensor(14, N, 4)), {"normalise": False, "margin": 2.0}),
}
INFORMATION = {
    "vid": Example(losses.vid, _same_maps, {"variance": _variance}, least=-np.inf),
    "vid-entries": Example(
        losses.vid, _same_rows, {"variance": tensor(15, N, 4).exp()}, per_sample=("variance",), least=-np.inf
    ),
    "crd": Example(losses.crd, _same_rows, {"temperature": 0.5}),
    "crd-symmetric": Example(losses.crd, _same_rows, {"temperature": 0.5, "symmetric": True}),
    "crd-memory": Example(
        losses.crd,
        _same_rows,
        {"temperature": 0.5, "memory": _memory, "contrast": _contrast},
        per_sample=("contrast",),
    ),
}
EXAMPLES = {
    **RESPONSE,
    **DECOUPLED,
    **STANDARDIZED,
    **LABELS,
    **ONLINE,
    **RANKING,
    **DATA_FREE,
    **FEATURE,
    **FEATURE_MAPS,
    **RELATION,
    **INFORMATION,
}

NO_LOSSES = {
    "crd_remember",
    "crd_start",
    "ema_update",
    "hardest_negatives",
    "ofd_margin",
    "ramp_up",
    "sample_activations",
    "vid_start",
    "vid_variance",
}
"""Public functions that are no losses: their own tests say what holds for them."""
