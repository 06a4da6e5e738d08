"""Calls of our losses on inputs that a formula makes, to be compared with what other people's programs gave for them.

What they gave stands in ``outside_values``. The first word of a case's name is the function.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd import losses


@dataclass(frozen=True)
class Case:
    """A function of ours and what it is called with.

    Attributes:
        call: takes the arguments, and settings by name.
        arguments: by position.
        settings: by name.
        part: which member of the result is compared; None is all of it.
    """

    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    part: int | None = None


def wave(number: int, *shape: int) -> Tensor:
    """Return float64 numbers between -2.2 and 2.2; a different row of them for each number."""
    n = np.arange(math.prod(shape), dtype=np.float64)
    values = 1.5 * np.sin(0.9 * n + number) + 0.7 * np.cos(0.13 * n**2 + 2 * number)
    return torch.from_numpy(values).reshape(shape)


def classes_of(samples: int, classes: int) -> Tensor:
    """Return class numbers, int64, shape ``(samples,)``."""
    n = torch.arange(samples)
    return (3 * n + n // 2) % classes


def probabilities(number: int, *shape: int) -> Tensor:
    """Return distributions over the last dimension."""
    return torch.softmax(wave(number, *shape), dim=-1)


def unit_rows(number: int, *shape: int) -> Tensor:
    """Return rows of length one."""
    rows = wave(number, *shape)
    return rows / rows.square().sum(dim=-1, keepdim=True).sqrt()


def batchnorm() -> nn.BatchNorm2d:
    """Return one with six channels: a negative weight, and one whose values are hardly ever below zero."""
    norm = nn.BatchNorm2d(6).double().eval()
    norm.weight.data = torch.tensor([1.0, -0.5, 2.0, 0.3, 0.7, 1.5], dtype=torch.float64)
    norm.bias.data = torch.tensor([0.2, -0.4, 0.0, 1.5, -1.0, 2.5], dtype=torch.float64)
    norm.running_mean, norm.running_var = wave(3, 6), 0.5 + wave(4, 6).square()
    return norm


def neighbours(nodes: int) -> Tensor:
    """Return a directed graph, bool, in which node ``i`` has the neighbours ``i + 1``, ``i + 2`` and, if odd, 0."""
    edges = torch.zeros(nodes, nodes, dtype=torch.bool)
    for node in range(nodes):
        edges[node, [(node + 1) % nodes, (node + 2) % nodes]] = True
        edges[node, 0] |= node % 2 == 1
    return edges


PAIR = (wave(1, 5, 4), wave(2, 5, 4))
LABELS = classes_of(5, 4)
SCORES = (wave(1, 4, 8), wave(2, 4, 8))
ROWS = (wave(1, 6, 5), wave(2, 6, 7))
MAPS = (wave(1, 3, 4, 6, 6), wave(2, 3, 5, 3, 3))
ALIKE = (wave(1, 3, 4, 5, 5), wave(2, 3, 4, 5, 5))
BATCHNORM = batchnorm()
EMBEDDINGS = (wave(5, 4, 3), wave(6, 4, 3))
OWN = torch.tensor([3, 0, 7, 4])
CONTRAST = torch.cat([OWN[:, None], (torch.arange(20).reshape(4, 5) * 5 + 1) % 8], dim=1)
NONE = torch.tensor(0.0, dtype=torch.float64)
FRESH = losses.CrdMemory(unit_rows(7, 8, 3), unit_rows(8, 8, 3), NONE, NONE)
KNOWN = FRESH._replace(student_scale=NONE + 40.0, teacher_scale=NONE + 25.0)

RESPONSE = {
    "kd": Case(losses.kd, PAIR, {"temperature": 4.0}),
    "logit_mae": Case(losses.logit_mae, PAIR),
    "logit_mse": Case(losses.logit_mse, PAIR),
    "soft_cross_entropy": Case(losses.soft_cross_entropy, (wave(1, 5, 4), probabilities(2, 5, 4))),
    "kl_to_probabilities": Case(losses.kl_to_probabilities, (wave(1, 5, 4), probabilities(2, 5, 4))),
    "binary_kd sum": Case(losses.binary_kd, PAIR),
    "binary_kd mean": Case(losses.binary_kd, PAIR, {"classes": "mean"}),
    "dkd": Case(losses.dkd, (*PAIR, LABELS), {"alpha": 1.0, "beta": 8.0, "temperature": 4.0}),
    "not_true": Case(losses.not_true, (*PAIR, LABELS), {"temperature": 3.0}),
    "dist": Case(losses.dist, PAIR, {"beta": 1.0, "gamma": 2.0}),
    "logit_standardized_kd code": Case(losses.logit_standardized_kd, PAIR, {"temperature": 2.0, "variant": "code"}),
    "cross_entropy": Case(losses.cross_entropy, (PAIR[0], LABELS)),
    "label_smoothing": Case(losses.label_smoothing, (PAIR[0], LABELS), {"smoothing": 0.1}),
    "label_smoothing others": Case(losses.label_smoothing, (PAIR[0], LABELS), {"smoothing": 0.1 * 4 / 3}),
    "virtual_teacher code": Case(
        losses.virtual_teacher, (PAIR[0], LABELS), {"confidence": 0.99, "temperature": 20.0, "variant": "code"}
    ),
    "mutual sum": Case(losses.mutual, (PAIR[0], wave(3, 3, 5, 4)), {"peers": "sum"}),
    "ensemble_mutual": Case(losses.ensemble_mutual, (PAIR[0], wave(3, 3, 5, 4))),
    "consistency mse": Case(losses.consistency, PAIR),
    "consistency kl": Case(losses.consistency, PAIR, {"cost": "kl"}),
    "class_wise_self": Case(losses.class_wise_self, PAIR, {"temperature": 4.0}),
    "ema_update early": Case(losses.ema_update, ({"a": wave(1, 3)}, {"a": wave(2, 3)}), {"step": 3, "decay": 0.99}),
    "ema_update late": Case(losses.ema_update, ({"a": wave(1, 3)}, {"a": wave(2, 3)}), {"step": 500, "decay": 0.99}),
    "ramp_up": Case(losses.ramp_up, (7.0,), {"length": 30.0}),
    "listnet": Case(losses.listnet, SCORES),
    "listmle": Case(losses.listmle, SCORES),
    "margin_mse": Case(losses.margin_mse, (wave(1, 6, 2), wave(2, 6, 2))),
    "ranking_distillation": Case(losses.ranking_distillation, SCORES, {"k": 5, "temperature": 2.0}),
    "ranking_distillation code": Case(
        losses.ranking_distillation, SCORES, {"k": 5, "temperature": 2.0, "discrepancy": 0.1, "variant": "code"}
    ),
    "ranking_distillation paper": Case(
        losses.ranking_distillation, SCORES, {"k": 5, "temperature": 2.0, "discrepancy": 0.1, "variant": "paper"}
    ),
}

FEATURE = {
    "hint": Case(losses.hint, ALIKE),
    "cross_modal_l2 code": Case(losses.cross_modal_l2, ALIKE, {"variant": "code"}),
    "activation_boundary": Case(losses.activation_boundary, ALIKE, {"margin": 1.0}),
    "ofd": Case(losses.ofd, (*ALIKE, torch.tensor([-0.3, -1.0, -0.1, -0.6], dtype=torch.float64))),
    "ofd_margin": Case(losses.ofd_margin, (BATCHNORM,)),
    "review_kd": Case(
        losses.review_kd, ([wave(1, 2, 3, 6, 6), wave(2, 2, 4, 3, 3)], [wave(3, 2, 3, 6, 6), wave(4, 2, 4, 3, 3)])
    ),
    "prototype": Case(
        losses.prototype, (wave(1, 5, 3), wave(2, 4, 3), torch.tensor([True, False, True, True]), classes_of(5, 4))
    ),
    "attention code": Case(losses.attention, MAPS, {"variant": "code"}),
    "attention paper": Case(losses.attention, ALIKE, {"variant": "paper"}),
    "factor_transfer code": Case(losses.factor_transfer, ALIKE, {"variant": "code"}),
    "factor_transfer attention": Case(losses.factor_transfer, MAPS, {"variant": "attention"}),
    "factor_transfer attention, squares": Case(losses.factor_transfer, MAPS, {"variant": "attention", "norm": 2}),
    "fsp code": Case(
        losses.fsp, ((wave(1, 2, 3, 6, 6), wave(2, 2, 4, 3, 3)), (wave(3, 2, 3, 6, 6), wave(4, 2, 4, 3, 3)))
    ),
    "nst": Case(losses.nst, MAPS),
    "rkd_distance": Case(losses.rkd_distance, ROWS),
    "rkd_angle": Case(losses.rkd_angle, ROWS),
    "similarity_preserving": Case(losses.similarity_preserving, ROWS),
    "correlation_congruence kernel": Case(losses.correlation_congruence, ROWS, {"gamma": 0.4, "order": 2}),
    "correlation_congruence delta": Case(
        losses.correlation_congruence, (wave(1, 6, 5), wave(2, 6, 5)), {"variant": "delta"}
    ),
    "pkt": Case(losses.pkt, ROWS),
    "triplet": Case(losses.triplet, (wave(1, 5, 4), wave(2, 5, 4), wave(3, 5, 4)), {"margin": 0.8}),
    "triplet, as they are": Case(
        losses.triplet, (wave(1, 5, 4), wave(2, 5, 4), wave(3, 5, 4)), {"margin": 8.0, "normalise": False}
    ),
    "hardest_negatives": Case(losses.hardest_negatives, (wave(1, 6, 3), wave(2, 6, 3), classes_of(6, 2))),
    "local_structure code": Case(
        losses.local_structure, (20 * ROWS[0], 20 * ROWS[1], neighbours(6)), {"variant": "code"}
    ),
    "vid": Case(losses.vid, ALIKE, {"variance": losses.vid_variance(wave(3, 4))}),
    "vid_variance": Case(losses.vid_variance, (wave(3, 4),)),
    "vid_start": Case(losses.vid_start, (5.0,)),
    "crd in the batch": Case(losses.crd, EMBEDDINGS, {"temperature": 0.07}),
    "crd fresh memory": Case(losses.crd, EMBEDDINGS, {"memory": FRESH, "contrast": CONTRAST}),
    "crd known scales": Case(losses.crd, EMBEDDINGS, {"memory": KNOWN, "contrast": CONTRAST}),
    "crd_remember": Case(losses.crd_remember, (FRESH, *EMBEDDINGS, CONTRAST), {"momentum": 0.5}),
}

DATA_FREE = {
    "one_hot": Case(losses.one_hot, (wave(1, 5, 4),)),
    "information_entropy code": Case(losses.information_entropy, (wave(1, 5, 4),), {"variant": "code"}),
    "information_entropy paper": Case(losses.information_entropy, (wave(1, 5, 4),), {"variant": "paper"}),
    "activation code": Case(losses.activation, (wave(1, 5, 6),), {"variant": "code"}),
    "batchnorm_statistics": Case(
        losses.batchnorm_statistics, (wave(1, 3, 6, 4, 4), BATCHNORM.running_mean, BATCHNORM.running_var)
    ),
    "dfad_generator code": Case(losses.dfad_generator, PAIR, {"variant": "code"}),
    "dfad_generator paper": Case(losses.dfad_generator, PAIR, {"variant": "paper"}),
    "zskt_generator code": Case(losses.zskt_generator, PAIR, {"temperature": 2.0, "variant": "code"}),
    "zskt_generator paper": Case(losses.zskt_generator, PAIR, {"temperature": 2.0, "variant": "paper"}),
    "metadata_reconstruction": Case(
        losses.metadata_reconstruction, ([wave(1, 5, 4), wave(2, 5, 3)], [wave(3, 5, 4), wave(4, 5, 3)])
    ),
    "sample_activations": Case(
        losses.sample_activations,
        (wave(1, 3), torch.diag(torch.tensor([0.25, 1.0, 2.25], dtype=torch.float64)), wave(2, 4, 3)),
    ),
}

CASES = {f"losses.{name}": case for family in (RESPONSE, FEATURE, DATA_FREE) for name, case in family.items()}
