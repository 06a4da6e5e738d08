"""Calibration errors by bins of confidence, in float64.

Two conventions for a confidence on the edge of two bins are in use. ``closed="left"``: bins are ``[low, high)``, and a
confidence of exactly 1 has one more bin of its own, as in torchmetrics. ``closed="right"``: bins are ``(low, high]``,
and 0 belongs to the first, as in Guo et al. They differ where confidences saturate. torchmetrics is not called for
either: it compares confidences in float32, and takes a table for logits only if a number is outside [0, 1].

To combine several parties, add what is in their bins (:meth:`Reliability.merged`): the mean of their errors is another
number.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from fedkd.calibration._checks import as_probabilities, expect_pairs
from fedkd.checks import expect_choice, expect_integer

Closed = Literal["left", "right"]


@dataclass(frozen=True)
class Reliability:
    """What is in each bin: enough for a reliability diagram, for all errors of it, and for merging.

    Attributes:
        edges: of the bins, float64, shape ``(B + 1,)``; with ``closed="left"`` the last bin is ``[1, 1]``.
        counts: samples in each bin, int64, shape ``(B,)``.
        confidence_sums: of their confidences, float64, shape ``(B,)``.
        hits: how many of them are right, int64, shape ``(B,)``.
        closed: to which bin an edge belongs.
    """

    edges: Tensor
    counts: Tensor
    confidence_sums: Tensor
    hits: Tensor
    closed: Closed

    @property
    def confidences(self) -> Tensor:
        """Mean confidence in each bin, float64, shape ``(B,)``; NaN where it is empty."""
        return self.confidence_sums / self.counts

    @property
    def accuracies(self) -> Tensor:
        """Share of right predictions in each bin, float64, shape ``(B,)``; NaN where it is empty."""
        return self.hits.double() / self.counts

    @property
    def expected_error(self) -> Tensor:
        """Distance between confidence and accuracy, weighted by the samples in the bins: 0 (best) to 1."""
        return (self.confidence_sums - self.hits).abs().sum() / self.counts.sum()

    @property
    def maximum_error(self) -> Tensor:
        """Largest distance between confidence and accuracy of a bin that is not empty: 0 (best) to 1."""
        return (self.confidences - self.accuracies).abs().nan_to_num(0.0).max()

    def merged(self, other: Self) -> Self:
        """Return the bins of both together, as if their samples had been counted at once.

        Raises:
            ValueError: the other has other bins.
        """
        if self.closed != other.closed or not torch.equal(self.edges, other.edges):
            mine, others = (f"{len(each.counts)} bins closed {each.closed}" for each in (self, other))
            raise ValueError(f"other: expected {mine}, found {others}.")
        return type(self)(
            self.edges,
            self.counts + other.counts,
            self.confidence_sums + other.confidence_sums,
            self.hits + other.hits,
            self.closed,
        )


def reliability(logits: Tensor, labels: Tensor, *, bins: int = 15, closed: Closed = "left") -> Reliability:
    """Sort predictions into bins of equal width by confidence, the probability of the predicted class.

    Args:
        logits: logits or probabilities, shape ``(N, C)``: rows without a negative number that all sum to 1, within the
            tolerance of their dtype, are probabilities and taken as they are; anything else is logits, of which the
            softmax is taken. Of equal largest ones the first is the prediction.
        labels: class numbers, int64, shape ``(N,)``.
        bins: number of bins over [0, 1]; with ``closed="left"`` one more for exactly 1.
        closed: to which bin an edge belongs, see the module's description.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, a number is not finite, or a
            setting is out of range.

    Formula: for each bin ``b`` of the confidence ``max_c p``: its samples, ``sum conf`` and ``sum [argmax p = y]``.

    Source: Guo et al. 2017 (arXiv:1706.04599), section 2.

    Elsewhere: Edges: torchmetrics has ``[low, high)`` and one more bin for exactly 1, the program of Guo et al.
    ``(low, high]`` (``closed``).
    """
    confidence, predicted = _rows(logits, labels, bins, closed).max(dim=1)
    return _counted(confidence, predicted == labels, bins, closed)


def expected_calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15, closed: Closed = "left") -> Tensor:
    """Return the mean distance between confidence and accuracy over bins of equal width, 0 (best) to 1.

    Args:
        logits: logits or probabilities, shape ``(N, C)``: rows without a negative number that all sum to 1, within the
            tolerance of their dtype, are probabilities and taken as they are; anything else is logits, of which the
            softmax is taken.
        labels: class numbers, int64, shape ``(N,)``.
        bins: number of bins over [0, 1].
        closed: to which bin an edge belongs, see the module's description.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, a number is not finite, or a
            setting is out of range.

    Formula: ``sum_b n_b / N * |acc_b - conf_b|``.

    Source: Guo et al. 2017 (arXiv:1706.04599), eq. 3.

    Elsewhere: torchmetrics computes in float32, and takes a table for logits only if a number is outside [0, 1]. Edges
    as of :func:`reliability`.

    Example:
        >>> expected_calibration_error(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1]))
        tensor(0.2500, dtype=torch.float64)
    """
    return reliability(logits, labels, bins=bins, closed=closed).expected_error


def maximum_calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15, closed: Closed = "left") -> Tensor:
    """Return the largest distance between confidence and accuracy of a bin, 0 (best) to 1.

    One sample alone in a bin can decide it; look at the counts (:func:`reliability`) before you believe it.

    Args:
        logits: logits or probabilities, shape ``(N, C)``: rows without a negative number that all sum to 1, within the
            tolerance of their dtype, are probabilities and taken as they are; anything else is logits, of which the
            softmax is taken.
        labels: class numbers, int64, shape ``(N,)``.
        bins: number of bins over [0, 1].
        closed: to which bin an edge belongs, see the module's description.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, a number is not finite, or a
            setting is out of range.

    Formula: ``max_b |acc_b - conf_b|``.

    Source: Guo et al. 2017 (arXiv:1706.04599), eq. 5.
    """
    return reliability(logits, labels, bins=bins, closed=closed).maximum_error


def class_wise_calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15, closed: Closed = "left") -> Tensor:
    """Return the calibration error of every class's probability, not of the predicted class alone: 0 (best) to 1.

    For each class: bins by its probability, and the distance to the share of samples of this class; then the mean over
    the classes.

    Args:
        logits: logits or probabilities, shape ``(N, C)``: rows without a negative number that all sum to 1, within the
            tolerance of their dtype, are probabilities and taken as they are; anything else is logits, of which the
            softmax is taken.
        labels: class numbers, int64, shape ``(N,)``.
        bins: number of bins over [0, 1].
        closed: to which bin an edge belongs, see the module's description.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, a number is not finite, or a
            setting is out of range.

    Formula: ``1 / C * sum_c sum_b n_bc / N * |freq_bc - mean_p_bc|``.

    Source: static calibration error, Nixon et al. 2019 (arXiv:1904.01685), eq. 5; class-wise ECE, Kull et al. 2019
    (arXiv:1910.12656).
    """
    rows = _rows(logits, labels, bins, closed)
    errors = [_counted(rows[:, label], labels == label, bins, closed).expected_error for label in range(rows.shape[1])]
    return torch.stack(errors).mean()


def adaptive_calibration_error(
    logits: Tensor, labels: Tensor, *, bins: int = 15, of: Literal["classes", "predictions"] = "classes"
) -> Tensor:
    """Return the calibration error over bins of equally many samples, 0 (best) to 1.

    The samples are sorted by probability (of equal ones, the misses first) and cut into ranges whose lengths differ by
    one at most, the longer first; with fewer samples than bins there are as many bins as samples. The error is the mean
    over all ranges, each counting the same.

    Args:
        logits: logits or probabilities, shape ``(N, C)``: rows without a negative number that all sum to 1, within the
            tolerance of their dtype, are probabilities and taken as they are; anything else is logits, of which the
            softmax is taken.
        labels: class numbers, int64, shape ``(N,)``.
        bins: number of ranges.
        of: ``"classes"`` looks at the probability of each class in turn, as in the paper; ``"predictions"`` only at
            that of the predicted one.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, a number is not finite, or a
            setting is out of range.

    Formula: ``1 / (C R) * sum_c sum_r |freq_cr - mean_p_cr|`` over ``R`` ranges of equally many samples.

    Source: Nixon et al. 2019 (arXiv:1904.01685), eq. 6; for predictions Nguyen & O'Connor 2015 (arXiv:1508.05154).
    """
    rows = _rows(logits, labels, bins)
    expect_choice("of", of, ("classes", "predictions"))
    if of == "predictions":
        confidence, predicted = rows.max(dim=1)
        return _error_of_equal_ranges(confidence, predicted == labels, bins)
    errors = [_error_of_equal_ranges(rows[:, label], labels == label, bins) for label in range(rows.shape[1])]
    return torch.stack(errors).mean()


def _rows(logits: Tensor, labels: Tensor, bins: int, closed: str = "left") -> Tensor:
    """Return checked probabilities in float64; a mean of probabilities may be one rounding error above 1."""
    expect_pairs("logits", logits, labels)
    expect_integer("bins", bins, 1)
    expect_choice("closed", closed, ("left", "right"))
    return as_probabilities(logits.detach()).double().clamp(max=1)


def _counted(confidence: Tensor, hit: Tensor, bins: int, closed: Closed) -> Reliability:
    """Sort confidences ``(N,)`` into bins of equal width."""
    confidence = confidence.contiguous()  # a class's column is not, and bucketize would warn
    edges = torch.arange(bins + 1, dtype=torch.float64, device=confidence.device) / bins
    if closed == "left":
        place = torch.bucketize(confidence, edges, right=True) - 1  # up to `bins`, the bin of exactly 1
        edges = torch.cat([edges, edges[-1:]])
    else:
        place = (torch.bucketize(confidence, edges) - 1).clamp(min=0)
    size = len(edges) - 1
    return Reliability(
        edges,
        torch.bincount(place, minlength=size),
        torch.zeros(size, dtype=torch.float64, device=confidence.device).index_add_(0, place, confidence),
        torch.bincount(place[hit], minlength=size),
        closed,
    )


def _error_of_equal_ranges(confidence: Tensor, hit: Tensor, bins: int) -> Tensor:
    """Mean distance between confidence and share of hits over ranges of equally many samples."""
    # Two stable sorts: by hits first, then by confidence, so that the order of the samples does not matter.
    order = hit.to(torch.int8).argsort(stable=True)
    order = order[confidence[order].argsort(stable=True)]
    gaps = [
        (confidence[part] - hit[part].double()).mean().abs() for part in order.tensor_split(min(bins, len(confidence)))
    ]
    return torch.stack(gaps).mean()
