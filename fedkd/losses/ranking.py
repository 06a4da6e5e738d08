"""Distillation of rankings and of numbers: the teacher's scores are an order, distances, or a target to reach.

Pure functions like all losses: they return a scalar, never change their arguments, send no gradient to the teacher, and
run inside ``torch.func.vmap`` and ``torch.func.grad``. A row holds the scores of ``C`` items for one query.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fedkd.checks import expect_choice, expect_integer, expect_numbers, expect_positive, expect_shape, expect_within
from fedkd.losses._logits import received_pair
from fedkd.numerics import wide


def listnet(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the probabilities that an item comes first: ``-sum softmax(t / T) log softmax(s / T)``.

    Averaged over queries. Its minimum is the entropy of the teacher's probabilities, not zero.

    Args:
        student: scores of the student, shape ``(N, C)``.
        teacher: scores of the teacher, shape ``(N, C)``.
        temperature: ``T``, above 0; the paper has none, which is ``T = 1``. No factor ``T^2``.

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or the temperature is not above 0.

    Formula: ``-1 / N * sum_nc softmax(teacher / T) log softmax(student / T)``.

    Source: Cao et al. 2007 (ListNet, ICML), with top-one probabilities.

    Elsewhere: allRank adds 1e-10 in the logarithm, and leaves out items that are only there to fill a row up.
    """
    student, teacher = received_pair(student, teacher)
    expect_positive("temperature", temperature)
    log_student = torch.log_softmax(student / temperature, dim=1)
    return -(torch.softmax(teacher / temperature, dim=1) * log_student).sum(dim=1).mean()


def listmle(student: Tensor, teacher: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's order under the student's Plackett-Luce model, averaged over queries.

    Nothing but the order of the teacher's scores counts; equal ones are taken in the order of the items.

    Args:
        student: scores of the student, shape ``(N, C)``.
        teacher: scores of the teacher, shape ``(N, C)``.

    Returns:
        The loss in nats, a scalar, above zero; it tends to zero as the student spreads its scores in that order.

    Raises:
        ValueError: a shape does not fit, or a value is not finite.

    Formula: ``1 / N * sum_n sum_i (log sum_(j >= i) exp(s_j) - s_i)`` with the student's scores ``s`` in the teacher's
    order, best first.

    Source: Xia et al. 2008 (ListMLE, ICML).

    Elsewhere: allRank adds 1e-10 in the logarithm, and shuffles the items first: equal ones stand in any order.
    """
    student, teacher = received_pair(student, teacher)
    worst_first = student.gather(1, _best_first(teacher).flip(1))
    return (worst_first.logcumsumexp(dim=1) - worst_first).sum(dim=1).mean()


def margin_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of margins, averaged over queries and irrelevant items.

    A margin is the score of the relevant item, the first column, minus that of another one.

    Args:
        student: scores of the student, shape ``(N, C)``, two items or more; the paper has a pair.
        teacher: scores of the teacher, shape ``(N, C)``.

    Returns:
        The loss in squared units of the scores, a scalar.

    Raises:
        ValueError: a shape does not fit, or a value is not finite.

    Formula: ``1 / (N (C - 1)) * sum_nc ((s_0 - s_c) - (t_0 - t_c))^2`` for ``c > 0``.

    Source: Hofstätter et al. 2020 (arXiv:2010.02666), Margin-MSE.

    Elsewhere: The authors' code, for pairs, agrees.
    """
    student, teacher = received_pair(student, teacher, classes=2)
    return ((student[:, :1] - student[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])).square().mean()


def ranking_distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    k: int = 10,
    temperature: float = 1.0,
    discrepancy: float | None = None,
    variant: str = "paper",
) -> Tensor:
    """The teacher's best ``k`` items count as relevant: ``-sum_r w_r log sigmoid(s_r)``, averaged over queries.

    ``w_r`` falls with the teacher's rank as ``exp(-r / lambda)`` and sums to 1. With ``discrepancy`` it is multiplied
    by ``tanh(mu * (r' - r))`` where the student has the item at a worse rank ``r'``, and by zero elsewhere; the paper
    does so after some epochs only. The student's ranks are exact here; the paper estimates them from a sample.

    Args:
        student: scores of the student, shape ``(N, C)``.
        teacher: scores of the teacher, shape ``(N, C)``.
        k: number of the teacher's items, from 1 to ``C``.
        temperature: ``lambda``, above 0: the larger, the more equal are the weights.
        discrepancy: ``mu``, above 0 (0.1 in the authors' code), or ``None``: the teacher's rank alone decides.
        variant: ``"paper"`` lets the product of the two weights sum to 1 for each query; ``"code"`` leaves it as it is.

    Returns:
        The loss in nats, a scalar; zero for a query whose items all rank as high as the teacher wants.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or a setting is outside its range.

    Formula: ``-1 / N * sum_n sum_(r < k) w_r log sigmoid(s_r)`` with ``w_r ~ exp(-r / lambda)``, times
    ``max(0, tanh(mu (r' - r)))``.

    Source: Tang & Wang 2018 (arXiv:1809.07428), eq. 8 and 9 for the weights.

    Elsewhere: The authors' code does not let the product of the weights sum to 1 (``variant="code"``).
    """
    student, teacher = received_pair(student, teacher)
    expect_integer("k", k, 1, student.shape[1])
    expect_positive("temperature", temperature)
    expect_choice("variant", variant, ("paper", "code"))
    chosen = student.gather(1, _best_first(teacher)[:, :k])
    ranks = torch.arange(k, device=student.device, dtype=student.dtype)
    weights = torch.softmax(-ranks / temperature, dim=0)
    if discrepancy is not None:
        expect_positive("discrepancy", discrepancy)
        weights = weights * _discrepancies(student.detach(), chosen.detach(), ranks, discrepancy)
        if variant == "paper":
            total = weights.sum(dim=1, keepdim=True)
            weights = weights / torch.where(total > 0, total, 1.0)
    return -(weights * logsigmoid(chosen)).sum(dim=1).mean()


def teacher_bounded_regression(student: Tensor, teacher: Tensor, targets: Tensor, *, margin: float = 0.0) -> Tensor:
    """Squared error of the student where it is worse than the teacher's minus a margin, averaged over samples.

    The teacher only says how good is good enough: a sample counts while ``|s - y|^2 + m > |t - y|^2``, and not at all
    afterwards. It goes beside the student's own regression loss, with weight 0.5 in the paper.

    Args:
        student: predictions of the student, shape ``(N, d)``.
        teacher: predictions of the teacher, shape ``(N, d)``.
        targets: true values, shape ``(N, d)``.
        margin: ``m``, 0 or more, in squared units of the targets: by how much the student has to be better.

    Returns:
        The loss in squared units of the targets, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or the margin is negative.

    Formula: ``1 / N * sum_n e_n [e_n + m > b_n]`` with ``e = |student - targets|^2``, ``b = |teacher - targets|^2``.

    Source: Chen et al. 2017 (Learning efficient object detection models with knowledge distillation, NeurIPS), teacher
    bounded regression loss.

    Elsewhere: No difference known; no public code was compared.
    """
    expect_shape("student", student, "N", "d")
    for name, value in (("teacher", teacher), ("targets", targets)):
        expect_shape(name, value, *student.shape)
        expect_numbers(name, value)
    expect_numbers("student", student)
    expect_within("margin", margin, 0)
    student = wide(student)
    wanted = targets.detach().to(student.dtype)
    error = (student - wanted).square().sum(dim=1)
    bound = (teacher.detach().to(student.dtype) - wanted).square().sum(dim=1)
    return torch.where(error + margin > bound, error, 0.0).mean()


def _best_first(scores: Tensor) -> Tensor:
    return torch.sort(scores, dim=1, descending=True, stable=True).indices


def _discrepancies(scores: Tensor, chosen: Tensor, ranks: Tensor, sharpness: float) -> Tensor:
    """Return how far below its wanted rank each chosen item is, squashed to ``[0, 1)``: ``(N, k)``."""
    student_ranks = (scores[:, None, :] > chosen[:, :, None]).sum(dim=2)
    return torch.tanh(sharpness * (student_ranks - ranks)).clamp(min=0)
