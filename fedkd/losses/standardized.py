"""Response-based losses that compare outputs up to their shift and scale.

Pure functions like all losses: they return a scalar, never change their arguments, send no gradient to the teacher, and
run inside ``torch.func.vmap`` and ``torch.func.grad``.
"""

import torch
from torch import Tensor

from fedkd.checks import expect_choice, expect_number, expect_positive
from fedkd.losses._logits import divergence, received_pair


def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    eps: float = 1e-8,
) -> Tensor:
    """Distillation from a stronger teacher: ``T^2 * (beta * inter + gamma * intra)`` of softened probabilities.

    ``inter`` is one minus Pearson's correlation of student and teacher within each sample, averaged over samples;
    ``intra`` the same within each class over the batch, averaged over classes. Each lies between 0 and 2. A row or
    column without variance, such as that of a batch of one, correlates with nothing: it counts as 1.

    Args:
        student: logits of the student, shape ``(N, C)``.
        teacher: logits of the teacher, shape ``(N, C)``.
        beta: weight of ``inter``.
        gamma: weight of ``intra``.
        temperature: ``T``, above 0. At 1 the loss is the authors' first form, which has no temperature.
        eps: is added to the product of two lengths before it divides, above 0, as in the authors' code; so student and
            teacher that agree give not quite zero.

    Returns:
        The loss, without unit, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or a setting is out of range.

    Source: Huang et al. 2022 (DIST, arXiv:2205.10536), section 4; eps as in the authors' code.
    """
    student, teacher = received_pair(student, teacher)
    expect_number("beta", beta)
    expect_number("gamma", gamma)
    expect_positive("temperature", temperature)
    expect_positive("eps", eps)
    student, teacher = torch.softmax(student / temperature, dim=1), torch.softmax(teacher / temperature, dim=1)
    inter = 1 - _correlations(student, teacher, 1, eps).mean()
    intra = 1 - _correlations(student, teacher, 0, eps).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def logit_standardized_kd(
    student: Tensor, teacher: Tensor, *, temperature: float = 2.0, variant: str = "paper"
) -> Tensor:
    """Distillation of logits that are standardised first: ``T^2 * KL``, averaged over the batch.

    Each row loses its mean and is divided by its standard deviation, so the student need not reach the teacher's
    range. A row without variance becomes zeros.

    Args:
        student: logits of the student, shape ``(N, C)``.
        teacher: logits of the teacher, shape ``(N, C)``.
        temperature: ``T``, the paper's base temperature, above 0.
        variant: ``"paper"`` divides by the standard deviation with ``1/C``; ``"code"``, as the authors' code does, by
            that with ``1/(C - 1)``, plus 1e-7.

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: a shape does not fit, there is one class only, a value is not finite, or a setting is none.

    Source: Sun et al. 2024 (arXiv:2403.01427), algorithms 1 and 2; their weight is 9 with ``T = 2`` on CIFAR-100.
    """
    student, teacher = received_pair(student, teacher, classes=2)
    expect_choice("variant", variant, ("paper", "code"))
    standardized = _standardized if variant == "paper" else _standardized_as_in_code
    return divergence(standardized(student), standardized(teacher), temperature)


def _correlations(first: Tensor, second: Tensor, dim: int, eps: float) -> Tensor:
    first, second = first - first.mean(dim, keepdim=True), second - second.mean(dim, keepdim=True)
    lengths = torch.linalg.vector_norm(first, dim=dim) * torch.linalg.vector_norm(second, dim=dim)
    correlations: Tensor = (first * second).sum(dim) / (lengths + eps)
    return correlations


def _standardized(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(dim=1, keepdim=True)
    deviation = centred.square().mean(dim=1, keepdim=True)
    # What rounding leaves of a constant row is not a variance.
    rounding = (torch.finfo(logits.dtype).eps * logits.detach().abs().amax(dim=1, keepdim=True)).square()
    varies = deviation > rounding
    return torch.where(varies, centred / torch.where(varies, deviation, 1.0).sqrt(), 0.0)


def _standardized_as_in_code(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (logits.std(dim=1, keepdim=True) + 1e-7)
