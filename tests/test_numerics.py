"""Small numerical parts, against PyTorch's own operations and numbers worked out by hand."""

import pytest
import torch

from fedkd.numerics import distances, pooled, products, root, to_smaller, unit, wide
from tests.losses.conftest import draw


def test_pooling_is_adaptive_pooling() -> None:
    maps = torch.tensor(draw(3, 2, 3, 7, 9))
    for size in ((7, 9), (3, 4), (1, 1), (5, 2), (9, 9)):
        expected = torch.nn.functional.adaptive_avg_pool2d(maps, size)
        torch.testing.assert_close(pooled(maps, size), expected, rtol=1e-12, atol=1e-14)


def test_two_maps_meet_at_the_smaller_height_and_the_smaller_width() -> None:
    first, second = to_smaller(torch.ones(1, 2, 4, 3), torch.ones(1, 5, 2, 6))
    assert (first.shape, second.shape) == ((1, 2, 2, 3), (1, 5, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_single_and_the_rest_stays(dtype: torch.dtype) -> None:
    assert wide(torch.ones(2, dtype=dtype)).dtype == torch.float32
    assert wide(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


def test_a_root_of_zero_has_no_gradient() -> None:
    values = torch.tensor([0.0, 9.0], requires_grad=True)
    assert root(values).tolist() == [0.0, 3.0]
    root(values).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 1 / 6]))


def test_a_vector_of_length_zero_stays_one_and_has_no_gradient() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    torch.testing.assert_close(unit(rows), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    unit(rows)[1].sum().backward()
    assert rows.grad is not None
    assert not rows.grad.any()


def test_distances_of_equal_rows_are_zero() -> None:
    rows = 1e4 + torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert distances(rows).tolist() == [[0, 5, 0], [5, 0, 5], [0, 5, 0]]


def test_products_stay_in_single_precision_inside_autocast() -> None:
    first = torch.tensor([[1.0, 1 + 2**-12]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert products(first, first).item() == 1 + (1 + 2**-12) ** 2 - 2**-24  # the last bit is beyond float32
