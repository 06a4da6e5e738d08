"""Response-based losses that treat the labelled class and all other classes apart.

Pure functions like all losses: they return a scalar, never change their arguments, send no gradient to the teacher, and
run inside ``torch.func.vmap`` and ``torch.func.grad``.
"""

import torch
from torch import Tensor

from fedkd.checks import expect_labels, expect_number, expect_positive
from fedkd.losses._logits import at, divergence, received_pair, without


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled distillation: ``T^2 * (alpha * TCKD + beta * NCKD)``, averaged over the batch.

    TCKD is the divergence between the two-valued distributions "the label or not"; NCKD that between the distributions
    over the other classes. Plain distillation is ``TCKD + (1 - p) * NCKD`` with the teacher's probability ``p`` of the
    label, so a teacher that is sure of the label hardly teaches anything else there.

    Args:
        student: logits of the student, shape ``(N, C)``, two classes or more.
        teacher: logits of the teacher, shape ``(N, C)``.
        labels: class of each sample, int64 in ``[0, C)``, shape ``(N,)``.
        alpha: weight of TCKD.
        beta: weight of NCKD; 8 is the paper's most frequent choice on CIFAR-100, others are 6, 2 and 0.5.
        temperature: ``T``, above 0; the paper has 4 on CIFAR-100 and 1 on ImageNet.

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, a label is outside ``[0, C)``, or a setting is out of
            range.

    Formula: ``T^2 (alpha KL(b_t || b_s) + beta KL(r_t || r_s))`` with ``b = (p_y, 1 - p_y)`` and
    ``r = p_c / (1 - p_y)`` for ``c != y``, ``p = softmax(logits / T)``.

    Source: Zhao et al. 2022 (arXiv:2203.08679), eq. 7.

    Elsewhere: mdistiller, the official code, masks the label by -1000 instead of leaving it out, which half precision
    and two classes do not bear; it warms the whole term up, ``min(epoch / 20, 1)``.
    """
    student, teacher = received_pair(student, teacher, classes=2)
    expect_labels("labels", labels, *student.shape)
    expect_number("alpha", alpha)
    expect_number("beta", beta)
    expect_positive("temperature", temperature)
    target = temperature**2 * _target_divergence(student / temperature, teacher / temperature, labels)
    others = divergence(without(student, labels), without(teacher, labels), temperature)
    return alpha * target + beta * others


def not_true(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Distillation over the classes that are not the label: ``T^2 * KL``, averaged over the batch.

    The student keeps what the teacher knows about the other classes, while the label is left to the cross-entropy.

    Args:
        student: logits of the student, shape ``(N, C)``, two classes or more; with two the loss is zero.
        teacher: logits of the teacher, in FedNTD those of the global model, shape ``(N, C)``.
        labels: class of each sample, int64 in ``[0, C)``, shape ``(N,)``.
        temperature: ``T``, above 0.

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, a label is outside ``[0, C)``, or the temperature is
            not above 0.

    Formula: ``T^2 KL(r_t || r_s)`` with ``r_c = softmax(logits / T)`` over the classes ``c != y``.

    Source: Lee et al. 2022 (FedNTD, arXiv:2106.03097), section 4; their weight ``beta`` is 1.

    Elsewhere: The first version of the authors' code has no factor ``T^2``; later ones have. Its default is ``T = 3``.
    """
    student, teacher = received_pair(student, teacher, classes=2)
    expect_labels("labels", labels, *student.shape)
    return divergence(without(student, labels), without(teacher, labels), temperature)


def _target_divergence(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """``KL`` of (label, not label), averaged over samples; ``1 - p`` is summed, because subtracting it cancels."""
    log_student, log_teacher = torch.log_softmax(student, dim=1), torch.log_softmax(teacher, dim=1)
    right = at(log_teacher, labels), at(log_student, labels)
    wrong = without(log_teacher, labels).logsumexp(dim=1), without(log_student, labels).logsumexp(dim=1)
    per_sample = right[0].exp() * (right[0] - right[1]) + wrong[0].exp() * (wrong[0] - wrong[1])
    return per_sample.mean()
