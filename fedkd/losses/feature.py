"""Feature-based losses that compare features entry by entry: the student's are drawn towards a teacher's.

Like the response-based losses they are pure, return a scalar, send no gradient to the teacher side, and run inside
``torch.func.vmap`` and ``torch.func.grad``. Where widths or sizes differ, a connector of ``fedkd.models`` brings the
student's features to the teacher's shape first; losses that need none are in ``feature_maps``.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fedkd.checks import (
    expect_booleans,
    expect_choice,
    expect_labels,
    expect_numbers,
    expect_positive,
    expect_shape,
    expect_tensor,
)
from fedkd.losses._arguments import alike
from fedkd.numerics import pooled, wide

_REVIEW_LEVELS = (4, 2, 1)
_SMALLEST_TAIL = 1e-3


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features, over samples and feature entries.

    Where widths differ, the caller maps the student's features to the teacher's width first (FitNets' regressor).

    Args:
        student: features of the student, shape ``(N, ...)``.
        teacher: features of the teacher, same shape.

    Returns:
        The loss in squared units of the features, a scalar.

    Raises:
        ValueError: a shape does not fit, or a value is not a finite number.

    Formula: ``1 / (N D) * sum (student - teacher)^2`` over samples and their ``D`` entries.

    Source: Romero et al. 2015 (FitNets, arXiv:1412.6550), eq. 3.

    Elsewhere: The paper has ``1/2`` times the *sum* over the entries of a sample; public code the mean. The regressor
    of RepDistiller, mdistiller and torchdistill ends in a ReLU, which cannot reach negative features.
    """
    student, teacher = alike(student, teacher)
    return (student - teacher).square().mean()


def cross_modal_l2(student: Tensor, teacher: Tensor, *, variant: Literal["mean", "code"] = "mean") -> Tensor:
    """Squared difference between features of one sample in two modalities, such as a depth map and a photograph.

    Args:
        student: features of the student, from its own modality, shape ``(N, ...)``.
        teacher: features of the teacher, from the modality it was trained on, same samples, same shape.
        variant: ``"mean"`` over samples and entries, as in :func:`hint`, whatever the size of the features;
            ``"code"``: Caffe's Euclidean loss, which the authors used: half the sum over entries, mean over samples.

    Returns:
        The loss in squared units of the features, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not a finite number, or there is no such variant.

    Formula: mean: ``1 / (N D) * sum (student - teacher)^2``; code: ``1 / (2 N) * sum (student - teacher)^2``.

    Source: Gupta et al. 2016 (arXiv:1507.00448), section 3, which leaves the distance open and takes L2.

    Elsewhere: Caffe's EuclideanLoss, which the authors used, is ``variant="code"``.
    """
    expect_choice("variant", variant, ("mean", "code"))
    student, teacher = alike(student, teacher)
    squares = (student - teacher).square()
    return squares.mean() if variant == "mean" else squares.sum() / (2 * len(student))


def activation_boundary(student: Tensor, teacher: Tensor, *, margin: float = 1.0) -> Tensor:
    """Squared hinge that makes each neuron of the student active where the teacher's is, by a margin.

    Only the sign of the teacher's values counts. Summed over the entries of a sample, averaged over samples.

    Args:
        student: pre-activations of the student, mapped to the teacher's shape, ``(N, ...)``.
        teacher: pre-activations of the teacher, same shape; active where above 0.
        margin: the paper's ``mu``, in units of the pre-activations, above 0.

    Returns:
        The loss in squared units of the pre-activations, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not a finite number, or the margin is not above 0.

    Formula: ``1 / N * sum max(0, margin - student)^2`` where ``teacher > 0``, ``max(0, margin + student)^2`` elsewhere.

    Source: Heo et al. 2019 (arXiv:1811.03233), the alternative loss with a margin.

    Elsewhere: Public code multiplies by 3/1000, and by ``2^(l - L)`` for the l-th of ``L`` layers.
    """
    expect_positive("margin", margin)
    student, teacher = alike(student, teacher)
    lacking = torch.where(teacher > 0, margin - student, margin + student).clamp(min=0)
    return lacking.square().sum() / len(student)


def ofd(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Partial squared distance before the ReLU: what the ReLU will cut off anyway is left alone.

    The target is ``max(teacher, margin)``. An entry counts where the target is positive, or where the student lies
    above it. Summed over the entries of a sample, averaged over samples.

    Args:
        student: pre-activations of the student, mapped to the teacher's shape, ``(N, C, ...)``.
        teacher: pre-activations of the teacher in evaluation mode, same shape.
        margin: one value at most 0 for each channel, see :func:`ofd_margin`, shape ``(C,)`` or ``(1, C, 1, 1)``.

    Returns:
        The loss in squared units of the pre-activations, a scalar.

    Raises:
        ValueError: a shape does not fit, or a value is not a finite number.

    Formula: ``1 / N * sum (student - u)^2 [student > u or u > 0]`` with ``u = max(teacher, margin)``.

    Source: Heo et al. 2019 (arXiv:1904.01866), section 3: margin ReLU and partial L2 distance.

    Elsewhere: The official code multiplies by 1e-3 (CIFAR) or 1e-4 (ImageNet), and by ``2^(l - L)`` for the l-th of
    ``L`` layers. It and mdistiller keep the teacher in training mode, so that its running statistics drift.
    """
    expect_tensor("student", student)
    expect_tensor("margin", margin)
    expect_shape("student", student, "N", "C", *"d" * (student.ndim - 2))
    channels = student.shape[1]
    expect_shape("margin", margin.flatten(), channels)
    expect_numbers("margin", margin)
    student, teacher = alike(student, teacher)
    per_channel = margin.detach().to(student.dtype).reshape(1, -1, *[1] * (student.ndim - 2))
    target = torch.maximum(teacher, per_channel)
    counts = (student > target) | (target > 0)
    return torch.where(counts, student - target, 0.0).square().sum() / len(student)


def ofd_margin(batchnorm: nn.Module) -> Tensor:
    """Return the margin of :func:`ofd`: what a channel's negative values are on average.

    It takes a channel before the ReLU to be normally distributed with the mean and deviation that BatchNorm gives it.
    Where less than a thousandth of it is negative, the margin is three deviations below zero, as in the official code.

    Args:
        batchnorm: the teacher's BatchNorm whose output enters the ReLU.

    Returns:
        One value at most 0 for each channel, shape ``(C,)``.

    Raises:
        ValueError: the module has no weight and bias, or one that is not finite.

    Formula: ``E[x | x < 0] = b - |w| phi(b / |w|) / Phi(-b / |w|)`` for ``x ~ N(b, w^2)``; ``-3 |w|`` where
    ``Phi(-b / |w|) <= 1e-3``.

    Source: Heo et al. 2019 (arXiv:1904.01866), section 3.

    Elsewhere: The official code agrees. It belongs to the BatchNorm before the ReLU *after* the block.
    """
    weight, bias = getattr(batchnorm, "weight", None), getattr(batchnorm, "bias", None)
    if not (isinstance(weight, Tensor) and isinstance(bias, Tensor) and weight.ndim == bias.ndim == 1):
        raise ValueError(f"batchnorm: expected a BatchNorm with weight and bias, found {batchnorm}.")
    expect_numbers("batchnorm.weight", weight)
    expect_numbers("batchnorm.bias", bias)
    mean, deviation = bias.detach().double(), weight.detach().double().abs()
    flat = deviation == 0  # such a channel is constant
    ratio = mean / torch.where(flat, 1.0, deviation)
    log_tail = torch.special.log_ndtr(-ratio)
    log_density = -(ratio.square() + math.log(2 * math.pi)) / 2
    average = mean - deviation * (log_density - log_tail).exp()
    margin = torch.where(log_tail.exp() > _SMALLEST_TAIL, average, -3 * deviation)
    return torch.where(flat, mean, margin).clamp(max=0).to(weight.dtype)


def review_kd(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> Tensor:
    """Hierarchical context loss: mean squared difference of maps at full size and pooled to 4x4, 2x2 and 1x1.

    Levels that are smaller than the map count, with weights 1, 1/2, 1/4, 1/8 in turn, divided by their sum.

    Args:
        student: fused maps of the student, see ``fedkd.models.connectors``, shape ``(N, C, H, W)``; or several, one
            for each stage, whose losses are added.
        teacher: maps of the teacher before the activation, of the same shapes.

    Returns:
        The loss in squared units of the features, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not a finite number, or the numbers of stages differ.

    Formula: ``sum_l 2^-l mean((pool_l(student) - pool_l(teacher))^2) / sum_l 2^-l``, ``l = 0`` the full size, then 4, 2
    and 1.

    Source: Chen et al. 2021 (arXiv:2104.09044), section 3.3, with the levels and weights of the official code.

    Elsewhere: mdistiller and torchdistill agree.
    """
    ours, theirs = _stages("student", student), _stages("teacher", teacher)
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"teacher: expected as many stages as the student's, found {len(theirs)} for {len(ours)}.")
    return torch.stack([_hierarchical(*pair) for pair in zip(ours, theirs, strict=True)]).sum()


def _stages(name: str, maps: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    if isinstance(maps, Tensor):
        return [maps]
    if not isinstance(maps, list | tuple):
        expect_tensor(name, maps)
    return maps


def _hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    expect_shape("student", student, "N", "C", "H", "W")
    student, teacher = alike(student, teacher)
    difference = student - teacher  # pooling is linear: the difference of pooled maps is the pooled difference
    levels = [difference] + [pooled(difference, (side, side)) for side in _REVIEW_LEVELS if side < student.shape[2]]
    weights = [0.5**level for level in range(len(levels))]
    terms = [weight * level.square().mean() for weight, level in zip(weights, levels, strict=True)]
    return torch.stack(terms).sum() / sum(weights)


def prototype(features: Tensor, prototypes: Tensor, present: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of each sample's features to the prototype of its class, averaged over samples and entries.

    A sample whose class has no prototype contributes zero; it still counts in the mean, so that the weight of the
    other samples does not depend on who shares their batch.

    Args:
        features: features of the student, shape ``(N, d)``.
        prototypes: one feature vector for each class, shape ``(C, d)``; rows of absent classes are not looked at.
        present: whether a class has a prototype, bool, shape ``(C,)``.
        labels: class of each sample, int64 in ``[0, C)``, shape ``(N,)``.

    Returns:
        The loss in squared units of the features, a scalar.

    Raises:
        ValueError: a shape does not fit, a number that is looked at is not finite, or there is no such class.

    Formula: ``1 / (N d) * sum_n |features_n - prototypes_y|^2`` over the samples whose class has a prototype.

    Source: regularisation term of FedProto, Tan et al. 2022 (arXiv:2105.00243).

    Elsewhere: The paper sums over the entries, the public code takes their mean.
    """
    expect_shape("features", features, "N", "d")
    expect_shape("prototypes", prototypes, "C", features.shape[1])
    expect_shape("present", present, len(prototypes))
    expect_booleans("present", present)
    expect_labels("labels", labels, len(features), len(prototypes))
    expect_numbers("features", features)
    expect_numbers("prototypes", torch.where(present[:, None], prototypes, 0))
    features, prototypes = wide(features), wide(prototypes)
    # Without a prototype a sample is its own target: zero loss and zero gradient, and no shape depends on the data.
    held = present[labels][:, None]
    target = torch.where(held, prototypes[labels], features).detach()
    return (features - target).square().mean()
