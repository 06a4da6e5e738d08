"""Response-based losses: the student learns from a teacher's outputs as they are.

All are pure functions of one client's batch of ``N`` samples and ``C`` classes. They return a scalar, never change
their arguments, send no gradient to the teacher, and run inside ``torch.func.vmap`` and ``torch.func.grad``.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fedkd.checks import expect_choice, expect_not_negative, expect_positive
from fedkd.losses._logits import WARM, divergence, received_pair


def kd(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Knowledge distillation: ``T^2 * KL(teacher || student)`` of the softened outputs, averaged over the batch.

    The mean is over samples only; dividing by the classes too, as PyTorch's default reduction does, would make the
    weight of the loss depend on their number. ``T^2`` keeps the size of the gradient when ``T`` changes.

    Args:
        student: logits of the student, shape ``(N, C)``.
        teacher: logits of the teacher, shape ``(N, C)``.
        temperature: ``T``, above 0; larger values soften both sides.

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or the temperature is not above 0.

    Formula: ``T^2 / N * sum_nc q log(q / p)`` with ``p = softmax(student / T)``, ``q = softmax(teacher / T)``.

    Source: Hinton et al. 2015 (arXiv:1503.02531), section 2.

    Elsewhere: PyTorch's ``KLDivLoss`` with its default mean, as in the code of MFH, TAKD and HtFLlib, divides by ``C``
    too. KD_Lib takes ``T^2`` times the mean squared difference of the softmaxes. torchdistill leaves ``T^2`` out where
    it is given no labels.
    """
    student, teacher = received_pair(student, teacher)
    return divergence(student, teacher, temperature)


def logit_mae(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of logits, over samples and classes.

    Args:
        student: logits of the student, shape ``(N, C)``.
        teacher: logits of the teacher, shape ``(N, C)``.

    Returns:
        The loss in units of the logits, a scalar.

    Raises:
        ValueError: a shape does not fit, or a value is not finite.

    Formula: ``1 / (N C) * sum_nc |student - teacher|``.

    Source: the authors' code of FedMD, Li & Wang 2019 (arXiv:1910.03581).

    Elsewhere: The authors' code of DFAD has the same loss for the student.
    """
    student, teacher = received_pair(student, teacher)
    return (student - teacher).abs().mean()


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of logits, over samples and classes.

    Args:
        student: logits of the student, shape ``(N, C)``.
        teacher: logits of the teacher, shape ``(N, C)``.

    Returns:
        The loss in squared units of the logits, a scalar.

    Raises:
        ValueError: a shape does not fit, or a value is not finite.

    Formula: ``1 / (N C) * sum_nc (student - teacher)^2``.

    Source: Ba & Caruana 2014 (arXiv:1312.6184).

    Elsewhere: The paper has a factor 1/2 and sums over the classes.
    """
    student, teacher = received_pair(student, teacher)
    return (student - teacher).square().mean()


def soft_cross_entropy(student_logits: Tensor, teacher_probabilities: Tensor) -> Tensor:
    """Cross-entropy with soft labels, ``-sum_c q_c log p_c``, averaged over the batch.

    Its minimum over ``p`` is the entropy of ``q``, not zero. Its gradient is that of :func:`kl_to_probabilities`.

    Args:
        student_logits: outputs of the student, shape ``(N, C)``; ``p`` is their softmax.
        teacher_probabilities: ``q``, rows that sum to 1 (not checked: a row of zeros counts as nothing), shape
            ``(N, C)``. Logits here would leave the loss without a lower bound.

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or a probability is negative.

    Formula: ``-1 / N * sum_nc q log p`` with ``p = softmax(student_logits)``, ``q = teacher_probabilities``.

    Source: the distillation terms of FD, Jeong et al. 2018 (arXiv:1811.11479), and of DS-FL, Itahara et al. 2021
    (arXiv:2008.06180).

    Elsewhere: PyTorch's ``cross_entropy`` computes the same where it is given probabilities.
    """
    names = "student_logits", "teacher_probabilities"
    student, teacher = received_pair(student_logits, teacher_probabilities, names=names)
    expect_not_negative(names[1], teacher)
    return -(teacher * torch.log_softmax(student, dim=1)).sum(dim=1).mean()


def kl_to_probabilities(student_logits: Tensor, teacher_probabilities: Tensor) -> Tensor:
    """Divergence ``KL(q || p)`` from soft labels ``q``, averaged over the batch; ``0 log 0`` counts as 0.

    Args:
        student_logits: outputs of the student, shape ``(N, C)``; ``p`` is their softmax.
        teacher_probabilities: ``q``, rows that sum to 1, shape ``(N, C)``.

    Returns:
        The loss in nats, a scalar; zero exactly where student and teacher agree.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or a probability is negative.

    Formula: ``1 / N * sum_nc q (log q - log p)`` with ``p = softmax(student_logits)``, ``q = teacher_probabilities``.

    Source: Kullback & Leibler 1951; with ``q = softmax(mean of logits)`` it is the server's loss of FedDF, Lin et al.
    2020 (arXiv:2006.07242).

    Elsewhere: PyTorch's ``KLDivLoss`` divides by ``C`` too unless told ``reduction="batchmean"``.
    """
    names = "student_logits", "teacher_probabilities"
    student, teacher = received_pair(student_logits, teacher_probabilities, names=names)
    expect_not_negative(names[1], teacher)
    negative_entropy = torch.xlogy(teacher, teacher).sum(dim=1).mean()
    return negative_entropy + soft_cross_entropy(student, teacher)


def binary_kd(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, classes: str = "sum") -> Tensor:
    """Multi-label distillation: ``T^2 * KL(teacher || student)`` of each class by itself, averaged over the batch.

    Every class is a question of its own, answered with the probability ``sigmoid(z / T)``.

    Args:
        student: logits of the student, shape ``(N, C)``.
        teacher: logits of the teacher, shape ``(N, C)``.
        temperature: ``T``, above 0; the paper has none, which is ``T = 1``.
        classes: ``"sum"`` over the classes, as in the paper, or ``"mean"`` (``1/C`` of it).

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or a setting is none.

    Formula: ``T^2 / N * sum_nc (q log(q / p) + (1 - q) log((1 - q) / (1 - p)))`` with ``p = sigmoid(student / T)``,
    ``q = sigmoid(teacher / T)``.

    Source: the logits term of Yang et al. 2023 (MLD, arXiv:2308.06453).

    Elsewhere: Binary cross-entropy with soft targets is larger by the teacher's binary entropy, and PyTorch's takes the
    mean over classes too.
    """
    student, teacher = received_pair(student, teacher)
    expect_positive("temperature", temperature)
    expect_choice("classes", classes, ("sum", "mean"))
    if temperature > WARM:  # sigmoid(z / T) is the softmax of z and 0
        ours, theirs = (torch.stack([z, torch.zeros_like(z)], dim=2).flatten(0, 1) for z in (student, teacher))
        return divergence(ours, theirs, temperature) * (student.shape[1] if classes == "sum" else 1)
    student, teacher = student / temperature, teacher / temperature
    yes = torch.sigmoid(teacher) * (logsigmoid(teacher) - logsigmoid(student))
    no = torch.sigmoid(-teacher) * (logsigmoid(-teacher) - logsigmoid(-student))
    per_class = (yes + no).mean(dim=0)
    return temperature**2 * (per_class.sum() if classes == "sum" else per_class.mean())
