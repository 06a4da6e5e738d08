"""Graph-based losses: how a node's features lie to those of its neighbours, in the student as in the teacher.

They are pure, return a scalar, send no gradient to the teacher side, and run inside ``torch.func.vmap`` and
``torch.func.grad``.
"""

from typing import Literal

import torch
from torch import Tensor

from fedkd.checks import expect_booleans, expect_choice, expect_positive, expect_shape
from fedkd.losses._arguments import rows
from fedkd.numerics import distances, products

_WIDTH_IN_CODE = 100


def local_structure(
    student: Tensor,
    teacher: Tensor,
    edges: Tensor | None = None,
    *,
    variant: Literal["paper", "code"] = "paper",
    kernel: Literal["distance", "rbf", "linear"] = "distance",
    sigma: float = 1.0,
) -> Tensor:
    """Divergence between student and teacher of each node's similarities to its neighbours in a graph.

    A node's local structure is the softmax over its neighbours of their similarity to it.

    Args:
        student: one row of features for each node, shape ``(N, ...)``.
        teacher: likewise, shape ``(N, ...)``.
        edges: ``edges[i, j]``: whether ``j`` is a neighbour of ``i``, bool, shape ``(N, N)``; all others if None. A
            node without neighbours contributes zero, and counts in the mean.
        variant: ``"paper"``: ``KL(student || teacher)`` with the kernel asked for; ``"code"``, the authors':
            ``KL(teacher || student)`` with the similarity ``exp(-|x - y|_1 / 100)``.
        kernel: the similarity of ``"paper"``, one of several that it tries. ``"distance"``: ``-d^2 / (2 sigma^2)``;
            ``"rbf"``: its exponential; ``"linear"``: the inner product, without ``sigma``.
        sigma: width of the kernel, in units of the features, above 0.

    Returns:
        The divergence in nats, averaged over the nodes, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not a finite number, or a setting is out of range.

    Formula: ``1 / N * sum_i KL(s_i || t_i)`` with ``s_ij = softmax_j k(x_i, x_j)`` over the neighbours ``j`` of ``i``,
    ``t`` of the teacher.

    Source: Yang et al. 2020 (LSP, arXiv:2003.10477), section 3.

    Elsewhere: The authors' code (``variant="code"``) turns the divergence round, and its similarity is
    ``exp(-|x - y|_1 / 100)``.
    """
    expect_choice("variant", variant, ("paper", "code"))
    expect_choice("kernel", kernel, ("distance", "rbf", "linear"))
    expect_positive("sigma", sigma)
    ours, theirs = rows(student, teacher)
    nodes = len(ours)
    if edges is None:
        edges = ~torch.eye(nodes, dtype=torch.bool, device=ours.device)
    expect_shape("edges", edges, nodes, nodes)
    expect_booleans("edges", edges)
    similarity = "code" if variant == "code" else kernel
    log_ours, log_theirs = (_log_structure(_similarities(x, similarity, sigma), edges) for x in (ours, theirs))
    first, second = (log_ours, log_theirs) if variant == "paper" else (log_theirs, log_ours)
    return torch.where(edges, first.exp() * (first - second), 0.0).sum() / nodes


def _similarities(features: Tensor, kernel: str, sigma: float) -> Tensor:
    """Return the similarities ``(N, N)`` of all pairs of rows ``(N, d)``."""
    if kernel == "code":
        return (-torch.cdist(features, features, p=1) / _WIDTH_IN_CODE).exp()
    if kernel == "linear":
        return products(features, features)
    exponents = -distances(features).square() / (2 * sigma**2)
    return exponents.exp() if kernel == "rbf" else exponents


def _log_structure(similarities: Tensor, edges: Tensor) -> Tensor:
    """Return the logarithm of the softmax over each row's neighbours; what stands elsewhere means nothing."""
    lowest = torch.finfo(similarities.dtype).min / 4  # not -inf: a row without neighbours would become NaN
    return torch.log_softmax(torch.where(edges, similarities, lowest), dim=1)
