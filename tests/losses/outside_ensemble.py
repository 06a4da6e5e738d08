"""Calls of our ensemble rules and calibration scores, for the comparison with other people's programs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedkd import calibration, ensemble
from tests.losses.outside_cases import Case, classes_of, wave

TEACHERS = wave(1, 5, 2, 3)
TRUE = torch.tensor([2, 0])
COUNTS = torch.tensor([[4, 0, 9], [1, 3, 3], [0, 7, 2], [5, 5, 5], [2, 0, 1]])
PRESENT = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])
OUTPUTS = 3 * wave(9, 60, 4)
LABELS = torch.where(torch.arange(60) % 3 == 0, classes_of(60, 4), OUTPUTS.argmax(dim=1))
PREDICTED = torch.softmax(OUTPUTS, dim=1)
THREE = torch.stack([OUTPUTS, 0.4 * OUTPUTS, 2.5 * OUTPUTS])


def streamed(tensors: Tensor, weights: list[int]) -> Tensor:
    """Average tensors that arrive one by one."""
    stream = ensemble.StreamedMean(tuple(tensors.shape[1:]), limit=4, capacity=64)
    for tensor, weight in zip(tensors, weights, strict=True):
        stream.add(tensor, weight=weight)
    return stream.mean(torch.float64)


def scaled(fit: Callable[..., Callable[[Tensor], Tensor]], logits: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    """Return the probabilities of the first four samples after a map that was fitted on all."""
    return torch.softmax(fit(logits, labels, **settings)(logits), dim=1)[:4]


ENSEMBLE = {
    "mean_logits": Case(ensemble.mean_logits, (TEACHERS,)),
    "mean_probabilities": Case(ensemble.mean_probabilities, (TEACHERS,)),
    "mean_standardised_logits code": Case(ensemble.mean_standardised_logits, (TEACHERS,), {"mode": "code"}),
    "era": Case(ensemble.era, (TEACHERS,), {"temperature": 0.1}),
    "reduce_entropy": Case(ensemble.reduce_entropy, (torch.softmax(TEACHERS[0], dim=1),), {"temperature": 0.2}),
    "enhanced_era": Case(ensemble.enhanced_era, (TEACHERS,), {"exponent": 1.5}),
    "sharpen": Case(ensemble.sharpen, (torch.softmax(TEACHERS[0], dim=1),), {"exponent": 2.0}),
    "vote": Case(ensemble.vote, (TEACHERS,)),
    "weighted_probabilities": Case(ensemble.weighted_probabilities, (TEACHERS, 0.2 + wave(2, 5).square())),
    "weighted_logits": Case(ensemble.weighted_logits, (TEACHERS, 0.2 + wave(2, 5, 2).square())),
    "ebkd_weights": Case(ensemble.ebkd_weights, (TEACHERS,)),
    "ca_mkd_weights": Case(ensemble.ca_mkd_weights, (TEACHERS, TRUE)),
    "class_count_weights": Case(ensemble.class_count_weights, (COUNTS,)),
    "by_label_counts": Case(ensemble.by_label_counts, (TEACHERS, COUNTS, TRUE)),
    "weighted_class_means": Case(ensemble.weighted_class_means, (wave(3, 3, 3, 2), PRESENT), part=0),
    "leave_one_out": Case(ensemble.leave_one_out, (wave(3, 3, 3, 2), PRESENT, 1), part=0),
    "coordinate_median": Case(ensemble.coordinate_median, (TEACHERS,)),
    "trimmed_mean": Case(ensemble.trimmed_mean, (TEACHERS,), {"trim": 1}),
    "geometric_median": Case(ensemble.geometric_median, (wave(4, 5, 2, 3),)),
    "geometric_median, second opinion": Case(ensemble.geometric_median, (wave(4, 5, 2, 3),)),
    "cronus code": Case(ensemble.cronus, (wave(4, 5, 2, 3),), {"mode": "code"}),
    "cronus code, nine": Case(ensemble.cronus, (2 * wave(5, 9, 2, 3),), {"mode": "code"}),
    "exp_guard mean": Case(
        ensemble.exp_guard, (TEACHERS, wave(6, 5).square()), {"eta": 1.5, "centre": ensemble.mean_probabilities}
    ),
    "exp_guard median": Case(
        ensemble.exp_guard, (TEACHERS, wave(6, 5).square()), {"eta": 1.5, "centre": ensemble.coordinate_median}
    ),
    "StreamedMean": Case(streamed, (TEACHERS, [1, 2, 3, 4, 5])),
}

CALIBRATION = {
    "expected_calibration_error right": Case(
        calibration.expected_calibration_error, (PREDICTED, LABELS), {"bins": 15, "closed": "right"}
    ),
    "expected_calibration_error left": Case(calibration.expected_calibration_error, (PREDICTED, LABELS), {"bins": 15}),
    "expected_calibration_error left, ten": Case(
        calibration.expected_calibration_error, (PREDICTED, LABELS), {"bins": 10}
    ),
    "maximum_calibration_error": Case(calibration.maximum_calibration_error, (PREDICTED, LABELS), {"bins": 15}),
    "class_wise_calibration_error": Case(calibration.class_wise_calibration_error, (PREDICTED, LABELS), {"bins": 15}),
    "adaptive_calibration_error classes": Case(
        calibration.adaptive_calibration_error, (PREDICTED, LABELS), {"bins": 15}
    ),
    "adaptive_calibration_error predictions": Case(
        calibration.adaptive_calibration_error, (PREDICTED, LABELS), {"bins": 15, "of": "predictions"}
    ),
    "brier": Case(calibration.brier, (PREDICTED, LABELS)),
    "negative_log_likelihood": Case(calibration.negative_log_likelihood, (OUTPUTS, LABELS)),
    "entropy": Case(calibration.entropy, (PREDICTED,)),
    "confidence_gap": Case(calibration.confidence_gap, (PREDICTED, LABELS)),
    "fit_temperature": Case(calibration.fit_temperature, (OUTPUTS, LABELS)),
    "fit_temperatures": Case(calibration.fit_temperatures, (THREE, LABELS)),
    "fit_matrix_scaling": Case(partial(scaled, calibration.fit_matrix_scaling), (OUTPUTS, LABELS), {"penalty": 1e-12}),
}

CASES = {f"ensemble.{name}": case for name, case in ENSEMBLE.items()} | {
    f"calibration.{name}": case for name, case in CALIBRATION.items()
}
