"""The graph-based loss against formulas in float64 NumPy, and its properties."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import losses
from tests.losses.conftest import draw

N = 4
OURS, THEIRS = draw(0, N, 3), draw(1, N, 5)
ROTATION = np.linalg.qr(draw(3, 3, 3))[0]


def both(ours: np.ndarray, theirs: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.tensor(ours), torch.tensor(theirs)


def structure_loss(
    similarity: Callable[[np.ndarray, np.ndarray], float], edges: np.ndarray, swap: bool = False
) -> float:
    total = 0.0
    for i in range(N):
        around = np.flatnonzero(edges[i])
        parts = []
        for rows in (OURS, THEIRS):
            weights = np.array([math.exp(similarity(rows[i], rows[j])) for j in around])
            parts.insert(0 if swap else len(parts), weights / weights.sum())
        total += (parts[0] * np.log(parts[0] / parts[1])).sum()
    return total / N


SIMILARITIES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "distance": lambda a, b: -((a - b) ** 2).sum() / (2 * 1.3**2),
    "rbf": lambda a, b: math.exp(-((a - b) ** 2).sum() / (2 * 1.3**2)),
    "linear": lambda a, b: a @ b,
}
GRAPH = np.array([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=bool)


@pytest.mark.parametrize("kernel", SIMILARITIES)
def test_local_structure_equals_the_formula(kernel: str) -> None:
    settings = {"kernel": kernel, "sigma": 1.3}
    expected = structure_loss(SIMILARITIES[kernel], GRAPH)
    found = losses.local_structure(*both(OURS, THEIRS), torch.tensor(GRAPH), **settings).item()
    assert found == pytest.approx(expected, rel=1e-9)
    expected = structure_loss(SIMILARITIES[kernel], ~np.eye(N, dtype=bool))
    assert losses.local_structure(*both(OURS, THEIRS), **settings).item() == pytest.approx(expected, rel=1e-9)


def test_local_structure_invariances_and_lonely_nodes() -> None:
    pair = both(OURS, THEIRS)
    for changed in (OURS + 3, OURS @ ROTATION):
        expected = losses.local_structure(*pair).item()
        assert losses.local_structure(*both(changed, THEIRS)).item() == pytest.approx(expected, rel=1e-8)
    assert losses.local_structure(pair[0], pair[0]).item() == 0.0
    nobody = torch.zeros(N, N, dtype=torch.bool)
    ours = pair[0].requires_grad_()
    (gradient,) = torch.autograd.grad(losses.local_structure(ours, pair[1], nobody), ours)
    assert not gradient.any()
    one_each = torch.tensor(np.roll(np.eye(N, dtype=bool), 1, axis=0))
    assert losses.local_structure(*pair, one_each).item() == 0.0  # a single neighbour has probability one on both sides


def test_local_structure_of_the_authors_code() -> None:
    expected = structure_loss(lambda a, b: math.exp(-np.abs(a - b).sum() / 100), GRAPH, swap=True)
    found = losses.local_structure(*both(OURS, THEIRS), torch.tensor(GRAPH), variant="code").item()
    assert found == pytest.approx(expected, rel=1e-8)  # a small difference of numbers near a half


def test_refuses_what_is_no_graph() -> None:
    ours, theirs = both(OURS, THEIRS)
    with pytest.raises(ValueError, match=r"edges: expected shape \(4, 4\), found \(4, 3\)"):
        losses.local_structure(ours, theirs, torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"edges: expected booleans, found torch\.int64"):
        losses.local_structure(ours, theirs, torch.ones(4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="kernel: expected one of 'distance', 'rbf', 'linear', found 'cubic'"):
        losses.local_structure(ours, theirs, kernel="cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma: expected a finite number above 0, found 0"):
        losses.local_structure(ours, theirs, sigma=0)
