"""One call of every loss on features and relations, on small fixed inputs, for the tests of what holds for all."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd import losses

N = 5


def draw(seed: int, *shape: int) -> np.ndarray:
    """Return fixed numbers of about unit size, far from the kinks of the losses."""
    return np.random.default_rng(seed).normal(size=shape)


def tensor(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(draw(seed, *shape))


@dataclass(frozen=True)
class Example:
    """A loss and what it is called with.

    Attributes:
        loss: takes the arguments, and settings by name.
        arguments: the first is the student's and receives the gradient; all others are constant.
        settings: by name, tensors among them.
        permutable: whether one permutation of the samples in all arguments leaves the loss as it is.
        per_sample: which arguments have one entry per sample.
    """

    loss: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    permutable: bool = True
    per_sample: tuple[int, ...] = (0, 1)

    @property
    def call(self) -> Callable[..., Tensor]:
        return partial(self.loss, **self.settings)


_maps = tensor(1, N, 3, 4, 4), tensor(2, N, 6, 6, 6)
_same_maps = tensor(3, N, 3, 5, 5), tensor(4, N, 3, 5, 5)
_flows = (tensor(5, N, 2, 6, 6), tensor(6, N, 3, 4, 4)), (tensor(7, N, 2, 3, 3), tensor(8, N, 3, 3, 3))
_rows = tensor(9, N, 4), tensor(10, N, 7)
_same_rows = tensor(11, N, 4), tensor(12, N, 4)
_graph = torch.tensor(
    [[0, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]], dtype=torch.bool
)

FEATURE = {
    "hint": Example(losses.hint, _same_maps),
    "cross_modal_l2": Example(losses.cross_modal_l2, _same_rows),
    "cross_modal_l2-code": Example(losses.cross_modal_l2, _same_maps, {"variant": "code"}),
    "activation_boundary": Example(losses.activation_boundary, _same_maps),
    "ofd": Example(losses.ofd, (*_same_maps, torch.tensor([-0.5, -0.1, -1.0], dtype=torch.float64))),
    "review_kd": Example(losses.review_kd, _same_maps),
    "review_kd-stages": Example(
        losses.review_kd, tuple([one, tensor(k, N, 2, 2, 2)] for k, one in enumerate(_same_maps))
    ),
}
FEATURE_MAPS = {
    "attention": Example(losses.attention, _maps),
    "attention-paper": Example(losses.attention, _maps, {"variant": "paper", "power": 4}),
    "factor_transfer": Example(losses.factor_transfer, _same_maps),
    "factor_transfer-squares": Example(losses.factor_transfer, _same_maps, {"norm": 2}),
    "factor_transfer-paper": Example(losses.factor_transfer, _same_maps, {"variant": "paper"}),
    "factor_transfer-paper2": Example(losses.factor_transfer, _same_maps, {"variant": "paper", "norm": 2}),
    "factor_transfer-attention": Example(losses.factor_transfer, _maps, {"variant": "attention"}),
    "fsp": Example(losses.fsp, _flows),
    "fsp-paper": Example(losses.fsp, _flows, {"variant": "paper"}),
    "nst": Example(losses.nst, _maps),
}
RELATION = {
    "rkd_distance": Example(losses.rkd_distance, _rows),
    "rkd_angle": Example(losses.rkd_angle, _rows),
    "similarity_preserving": Example(losses.similarity_preserving, _maps),
    "correlation_congruence": Example(losses.correlation_congruence, _rows),
    "correlation_congruence-delta": Example(
        losses.correlation_congruence, _same_rows, {"variant": "delta"}, permutable=False
    ),
    "pkt": Example(losses.pkt, _rows),
    "local_structure": Example(losses.local_structure, _rows),
    "local_structure-rbf": Example(losses.local_structure, (*_rows, _graph), {"kernel": "rbf"}, permutable=False),
    "local_structure-code": Example(losses.local_structure, _rows, {"variant": "code"}),
    "local_structure-linear": Example(losses.local_structure, _rows, {"kernel": "linear"}),
    "triplet": Example(losses.triplet, (*_same_rows, tensor(14, N, 4)), per_sample=(0, 1, 2)),
    "triplet-raw": Example(
        losses.triplet, (*_same_rows, tensor(14, N, 4)), {"normalise": False, "margin": 2.0}, per_sample=(0, 1, 2)
    ),
}
INFORMATION = {
    "vid": Example(losses.vid, _same_maps, {"variance": torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)}),
    "vid-entries": Example(losses.vid, _same_rows, {"variance": tensor(15, N, 4).exp()}, permutable=False),
    "crd": Example(losses.crd, _same_rows, {"temperature": 0.5}),
    "crd-symmetric": Example(losses.crd, _same_rows, {"temperature": 0.5, "symmetric": True}),
    "crd-memory": Example(
        losses.crd,
        _same_rows,
        {
            "temperature": 0.5,
            "memory": losses.CrdMemory(
                torch.nn.functional.normalize(tensor(16, 9, 4)),
                torch.nn.functional.normalize(tensor(17, 9, 4)),
                torch.tensor(15.0, dtype=torch.float64),
                torch.tensor(12.0, dtype=torch.float64),
            ),
            "contrast": torch.tensor([[0, 3, 7], [4, 1, 2], [8, 0, 1], [2, 5, 5], [6, 7, 0]]),
        },
        permutable=False,
    ),
}
EXAMPLES = {**FEATURE, **FEATURE_MAPS, **RELATION, **INFORMATION}
