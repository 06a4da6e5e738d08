"""Metrics: what is measured of one model, and how the models of many clients are summed up."""

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from fedkd import calibration
from fedkd.errors import UserError

_WORST_SHARE = 10  # the worst tenth of the clients


def evaluate(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure one model's predictions, in float64.

    A model that has diverged is measured too: a row with NaN counts as wrong, and the other metrics are NaN where a
    number is not finite.

    Args:
        logits: class scores before the softmax, shape ``(N, C)``.
        labels: class numbers, int64, shape ``(N,)``.

    Returns:
        ``accuracy`` (0 to 1), ``nll`` (nats), ``ece`` (0 to 1), ``brier`` (0 to 2) and ``entropy`` (nats).

    Raises:
        UserError: there is no sample, or logits and labels do not belong together.

    Example:
        >>> import torch
        >>> evaluate(torch.tensor([[9.0, -9.0], [9.0, -9.0]]), torch.tensor([0, 1]))["accuracy"]
        0.5
    """
    _check(logits, labels)
    scores = logits.detach().double()
    probabilities = scores.softmax(dim=1)
    right = (probabilities.argmax(dim=1) == labels) & ~probabilities.isnan().any(dim=1)
    accuracy = {"accuracy": right.double().mean().item()}
    if not scores.isfinite().all():
        return accuracy | dict.fromkeys(("nll", "ece", "brier", "entropy"), math.nan)
    return accuracy | {
        "nll": calibration.negative_log_likelihood(scores, labels).item(),
        "ece": calibration.expected_calibration_error(probabilities, labels).item(),
        "brier": calibration.brier(probabilities, labels).item(),
        "entropy": calibration.entropy(probabilities).item(),
    }


def summarise(rows: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    """Sum up the metrics of many models; the order of the rows does not matter, down to the last bit.

    Args:
        rows: metrics of each model, all with the same keys, ``accuracy`` among them; None where there was nothing to
            measure.

    Returns:
        The mean of each metric over the rows that are not None, and ``accuracy_worst10``: the mean accuracy of the
        worst tenth of these rows (rounded down, at least one). None if there is no row.

    Raises:
        UserError: the rows do not have the same keys.

    Example:
        >>> summarise([{"accuracy": 0.5}, None, {"accuracy": 1.0}])
        {'accuracy': 0.75, 'accuracy_worst10': 0.5}
    """
    present = [row for row in rows if row is not None]
    if not present:
        return None
    keys = present[0].keys()
    for row in present:
        if row.keys() != keys:
            raise UserError(f"metrics: expected {', '.join(keys)} of every client, found {', '.join(row)} of one.")
    worst = sorted(row["accuracy"] for row in present)[: max(1, len(present) // _WORST_SHARE)]
    return {key: _mean(row[key] for row in present) for key in keys} | {"accuracy_worst10": _mean(worst)}


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:  # noqa: PLR2004 - (N, C)
        found = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise UserError(f"metrics: expected logits (N, C) and labels (N,), found {found}; predict once per label.")
    if not len(labels):
        raise UserError("metrics: expected at least one sample, found none; skip what has no test samples.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise UserError(
            f"metrics: expected labels 0 to {logits.shape[1] - 1} for {logits.shape[1]} logits, found {low} to {high}; "
            "give the model one output per class."
        )


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)
