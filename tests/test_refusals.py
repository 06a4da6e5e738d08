"""What every loss, rule and measure refuses: NaN, infinity, another shape, another number of classes."""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from fedkd import calibration, ensemble, losses
from tests.losses.conftest import draw
from tests.losses.examples import EXAMPLES

K, N, C = 3, 5, 4


def tensor(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(draw(seed, *shape))


@dataclass(frozen=True)
class Call:
    """A function and what it is called with, by name."""

    function: Callable[..., Any]
    values: dict[str, Any]

    def all_values(self) -> dict[str, Any]:
        """Return the values, with the defaults of what is not given."""
        bound = inspect.signature(self.function).bind(**self.values)
        bound.apply_defaults()
        return dict(bound.arguments)


LOGITS_ALONE = (
    *("mean_logits", "mean_probabilities", "mean_standardised_logits", "era", "enhanced_era", "vote"),
    *("geometric_median", "coordinate_median", "cronus"),
    *("entropy_weights", "confidence_weights", "variance_weights", "ebkd_weights"),
    *("by_entropy", "by_confidence", "by_variance", "ebkd"),
)
OF_EITHER = (
    *("brier", "confidence_gap", "reliability", "expected_calibration_error", "maximum_calibration_error"),
    *("class_wise_calibration_error", "adaptive_calibration_error"),
)
_rows, _logits = torch.softmax(tensor(0, N, C), dim=1), tensor(1, K, N, C)
_labels, _counts = torch.tensor([0, 3, 2, 1, 3]), torch.tensor([[3, 0, 1, 2], [0, 5, 1, 1], [2, 2, 2, 2]])
_scored = {"logits": _rows, "labels": _labels}
_fitted = {"logits": tensor(2, N, C), "labels": _labels}
_means = tensor(3, K, C, 2)
_crd = EXAMPLES["crd-memory"]
_batchnorm = nn.BatchNorm2d(3)


def _calls() -> Iterator[Call]:
    for example in EXAMPLES.values():
        yield Call(example.loss, {**dict(zip(example.names, example.arguments, strict=True)), **example.settings})
    pair = dict(zip(("student", "teacher"), _crd.arguments, strict=True))
    yield Call(losses.crd_remember, {**pair, "memory": _crd.settings["memory"], "contrast": _crd.settings["contrast"]})
    yield Call(losses.crd_start, {"samples": 6, "width": 3})
    yield Call(losses.ema_update, {"average": {"w": tensor(4, 3)}, "current": {"w": tensor(5, 3)}, "step": 9})
    yield Call(losses.hardest_negatives, {"anchor": tensor(6, N, 2), "candidates": tensor(7, N, 2), "labels": _labels})
    yield Call(losses.ofd_margin, {"batchnorm": _batchnorm})
    yield Call(losses.ramp_up, {"time": 1.0, "length": 2.0})
    yield Call(
        losses.sample_activations, {"mean": tensor(8, 3), "covariance": torch.eye(3).double(), "noise": tensor(9, N, 3)}
    )
    yield Call(losses.vid_start, {})
    yield Call(losses.vid_variance, {"raw": tensor(10, 3)})
    for rule in LOGITS_ALONE:
        yield Call(getattr(ensemble, rule), {"logits": _logits})
    yield Call(ensemble.cronus, {"logits": _logits, "liars": 1})
    yield Call(ensemble.trimmed_mean, {"logits": _logits, "trim": 1})
    yield Call(ensemble.exp_guard, {"logits": _logits, "scores": torch.ones(K), "eta": 1.0})
    yield Call(ensemble.reduce_entropy, {"probabilities": _rows})
    yield Call(ensemble.sharpen, {"probabilities": _rows})
    yield Call(ensemble.leave_one_out, {"class_means": _means, "present": _counts > 0, "own": 1})
    yield Call(ensemble.weighted_class_means, {"means": _means, "counts": _counts})
    for rule in (ensemble.weighted_probabilities, ensemble.weighted_logits):
        yield Call(rule, {"logits": _logits, "weights": torch.ones(K, N)})
    for rule in (ensemble.ca_mkd, ensemble.ca_mkd_weights):
        yield Call(rule, {"logits": _logits, "labels": _labels})
    yield Call(ensemble.class_count_weights, {"counts": _counts.double()})
    yield Call(ensemble.by_class_counts, {"logits": _logits, "counts": _counts.double()})
    yield Call(ensemble.by_label_counts, {"logits": _logits, "counts": _counts, "labels": _labels})
    for measure in OF_EITHER:
        yield Call(getattr(calibration, measure), _scored)
    yield Call(calibration.entropy, {"logits": _rows})
    for name in ("negative_log_likelihood", "fit_temperature", "fit_vector_scaling", "fit_matrix_scaling"):
        yield Call(getattr(calibration, name), _fitted)
    yield Call(calibration.fit_temperatures, {"logits": _logits, "labels": _labels})


CALLS = list(_calls())
every_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.function.__name__)

TAKES_ANY_SHAPE = {("activation", "features"), ("vid_variance", "raw")}
"""Arguments of which any shape is right."""
MAY_BE_NONE = {("cronus", "liars"), ("leave_one_out", "own"), ("ranking_distillation", "discrepancy")}
MAY_BE_NONE |= {("local_structure", "edges")}


def public_functions() -> set[Callable[..., Any]]:
    """Return the functions that the three packages offer."""
    offered = [value for package in (losses, ensemble, calibration) for value in vars(package).values()]
    return {value for value in offered if inspect.isfunction(value) and value is not losses.values_unchecked}


def test_every_public_function_is_called_here() -> None:
    assert {call.function for call in CALLS} == public_functions()


@every_call
def test_the_call_itself_is_right(call: Call) -> None:
    call.function(**call.values)


def refuses(call: Call, name: str, value: Any, *others: str) -> None:
    """Expect an error that names the argument, or one of others, what was expected and what was found."""
    with pytest.raises(ValueError, match=rf"^[^:]*\b({'|'.join((name, *others))})\b[^:]*: expected .*found .*\.$"):
        call.function(**{**call.values, name: value})


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Iterator[Any]:
    """Yield the value with each of its tensors changed in turn."""
    leaves, structure = tree_flatten(value)
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            yield tree_unflatten([*leaves[:place], change(leaf), *leaves[place + 1 :]], structure)


def spoil(bad: float) -> Callable[[Tensor], Tensor]:
    def spoiled(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        leaf = leaf.clone()
        leaf.view(-1)[min(1, leaf.numel() - 1)] = bad
        return leaf

    return spoiled


@every_call
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_nan_and_infinity(call: Call, bad: float) -> None:
    for name, value in call.all_values().items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            refuses(call, name, bad)
        for spoiled in changed(value, spoil(bad)):
            if any(not leaf.isfinite().all() for leaf in tree_flatten(spoiled)[0]):
                refuses(call, name, spoiled)


@every_call
def test_refuses_another_shape(call: Call) -> None:
    for name, value in call.values.items():
        if (call.function.__name__, name) not in TAKES_ANY_SHAPE:
            for other in changed(value, lambda leaf: torch.stack([leaf, leaf])):
                refuses(call, name, other, *call.values)  # of two that do not fit together, either is right


@every_call
def test_refuses_what_is_no_tensor(call: Call) -> None:
    for name, value in call.values.items():
        if isinstance(value, Tensor):
            others: list[object] = [value.numpy(), value.tolist(), "logits", 5.0]
            others += [list(value)] if value.ndim else []
            others += [] if (call.function.__name__, name) in MAY_BE_NONE else [None]
            for other in others:
                refuses(call, name, other, *call.values)  # as many stages as the other side has, for one


@every_call
def test_refuses_settings_that_are_no_numbers(call: Call) -> None:
    for name, value in call.all_values().items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            for other in ("4", None, [4.0]):
                if other is not None or (call.function.__name__, name) not in MAY_BE_NONE:
                    refuses(call, name, other)


@every_call
def test_refuses_a_class_that_there_is_not(call: Call) -> None:
    labels = call.values.get("labels")
    if labels is not None and call.function is not losses.hardest_negatives:  # which takes any numbers
        for bad in (-1, C):
            refuses(call, "labels", torch.where(labels == labels[0], bad, labels))


def test_a_batchnorm_is_looked_at_too() -> None:
    for name in ("weight", "bias"):
        batchnorm = nn.BatchNorm2d(3)
        with torch.no_grad():
            getattr(batchnorm, name)[1] = math.nan
        refuses(Call(losses.ofd_margin, {}), "batchnorm", batchnorm)
