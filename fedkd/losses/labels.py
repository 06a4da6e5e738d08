"""Losses without a teacher: what the student learns from labels, as they are or softened.

Pure functions like all losses: they return a scalar, never change their arguments, and run inside ``torch.func.vmap``
and ``torch.func.grad``.
"""

import math

import torch
from torch import Tensor

from fedkd.checks import expect_choice, expect_labels, expect_positive, expect_within
from fedkd.losses._logits import at, received


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with class labels, averaged over the batch.

    Args:
        logits: outputs of the student, shape ``(N, C)``.
        labels: class of each sample, int64 in ``[0, C)``, shape ``(N,)``. No value stands for "ignore".

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or a label is outside ``[0, C)``.
    """
    logits = received("logits", logits)
    expect_labels("labels", labels, *logits.shape)
    log_probabilities = torch.log_softmax(logits, dim=1)
    return -log_probabilities.gather(1, labels[:, None]).mean()


def label_smoothing(logits: Tensor, labels: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with ``(1 - e)`` on the label and ``e / C`` on every class, averaged over the batch.

    Its minimum is the entropy of the smoothed labels, not zero.

    Args:
        logits: outputs of the student, shape ``(N, C)``.
        labels: class of each sample, int64 in ``[0, C)``, shape ``(N,)``.
        smoothing: ``e``, from 0 (cross-entropy) to 1 (the uniform distribution).

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or a label or the setting is outside its range.

    Source: Szegedy et al. 2016 (arXiv:1512.00567), section 7. Other code puts ``e / (C - 1)`` on the *other* classes,
    which is ``smoothing * C / (C - 1)`` here.
    """
    logits = received("logits", logits)
    expect_labels("labels", labels, *logits.shape)
    expect_within("smoothing", smoothing, 0, 1)
    log_probabilities = torch.log_softmax(logits, dim=1)
    target = -at(log_probabilities, labels).mean()
    return (1 - smoothing) * target - smoothing * log_probabilities.mean()


def virtual_teacher(
    student: Tensor,
    labels: Tensor,
    *,
    confidence: float = 0.9,
    temperature: float = 20.0,
    variant: str = "paper",
) -> Tensor:
    """Divergence from a teacher that is right with the same confidence everywhere: ``a`` on the label.

    Every other class gets ``(1 - a) / (C - 1)``. A high temperature makes this almost uniform; at ``T = 1`` the loss
    equals label smoothing up to a constant. There is no factor ``T^2``, in the paper or in the authors' code.

    Args:
        student: logits of the student, shape ``(N, C)``, two classes or more.
        labels: class of each sample, int64 in ``[0, C)``, shape ``(N,)``.
        confidence: ``a``, from 0 to 1; the paper asks for 0.9 or more.
        temperature: ``T``, above 0; the paper asks for 20 or more.
        variant: ``"paper"``: ``KL(q_T || p_T)``, both sides softened, ``q_T`` in proportion to ``q^(1/T)``, summed over
            classes. ``"code"``: as the authors' code has it, ``q_T = softmax(q / T)``, the student is *not* softened,
            and the mean is over classes too (``1/C``; their multiplier is left to the weight of the loss).

    Returns:
        The loss in nats, a scalar; zero exactly where the student has the teacher's distribution.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or a label or a setting is outside its range.

    Source: Yuan et al. 2020 (Tf-KD_reg, arXiv:1909.11723), section 5.
    """
    student = received("student", student, classes=2)
    expect_labels("labels", labels, *student.shape)
    expect_within("confidence", confidence, 0, 1)
    expect_positive("temperature", temperature)
    expect_choice("variant", variant, ("paper", "code"))
    others = student.shape[1] - 1
    rest = (1 - confidence) / others
    if variant == "paper":
        odds, student = (confidence ** (1 / temperature), rest ** (1 / temperature)), student / temperature
    else:
        odds = math.exp(confidence / temperature), math.exp(rest / temperature)
    right, wrong = (odd / (odds[0] + others * odds[1]) for odd in odds)
    log_student = torch.log_softmax(student, dim=1)
    log_right = at(log_student, labels)
    cross = right * log_right + wrong * (log_student.sum(dim=1) - log_right)
    loss: Tensor = _entropy_term(right) + others * _entropy_term(wrong) - cross.mean()
    return loss if variant == "paper" else loss / student.shape[1]


def _entropy_term(probability: float) -> float:
    return probability * math.log(probability) if probability else 0.0
