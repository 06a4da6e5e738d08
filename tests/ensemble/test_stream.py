"""The streamed mean: exact, in any order, in memory for one teacher."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import ensemble
from fedkd.ensemble import StreamedMean
from tests.ensemble.conftest import LOGITS, SIZES, TEACHERS, softmax

SHAPE = LOGITS.shape[1:]


def stream_of(teachers: Tensor, weights: list[int] | None = None, **range_: float) -> StreamedMean:
    stream = StreamedMean(tuple(teachers.shape[1:]), **range_)  # type: ignore[arg-type]
    for teacher, weight in zip(teachers, weights or [1] * len(teachers), strict=True):
        stream.add(teacher, weight=weight)
    return stream


def test_it_is_the_mean_of_logits(logits: Tensor) -> None:
    found = stream_of(logits).mean(torch.float64)
    np.testing.assert_allclose(found, LOGITS.mean(axis=0), rtol=0, atol=2**-37)
    np.testing.assert_allclose(found, ensemble.mean_logits(logits), rtol=1e-9)


def test_it_is_the_mean_of_probabilities_weighted_by_samples(logits: Tensor) -> None:
    probabilities = torch.softmax(logits, dim=2)
    expected = np.average(softmax(LOGITS), axis=0, weights=SIZES)
    found = stream_of(probabilities, SIZES.tolist(), limit=1).mean(torch.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    sharpened = ensemble.reduce_entropy(found, temperature=0.1)
    np.testing.assert_allclose(sharpened, softmax(expected / 0.1), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(("limit", "capacity"), [(1, 1), (1, 2**16), (1024, 2**16), (2**-10, 2**40), (2**20, 2**20)])
def test_the_error_is_at_most_half_a_quantum(limit: float, capacity: int, dtype: torch.dtype) -> None:
    teachers = min(capacity, 50)
    shares = 2 * torch.rand(teachers, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 1
    numbers = (shares * min(limit, 60_000)).to(dtype)  # float16 ends at 65,504
    stream = stream_of(numbers, limit=limit, capacity=capacity)
    assert stream.quantum == limit * capacity * 2.0**-62
    found = stream.mean(torch.float64)
    for column, mean in zip(numbers.double().T.tolist(), found.tolist(), strict=True):
        exact = sum(map(Fraction, column)) / teachers
        rounding = Fraction(math.ulp(mean)) / 2
        assert abs(Fraction(mean) - exact) <= Fraction(stream.quantum) / 2 + rounding


def test_a_thousand_permutations_do_not_change_a_bit() -> None:
    teachers = 3 * torch.randn(20, 5, 10, generator=torch.Generator().manual_seed(2))
    weights, shuffled = torch.arange(1, 21), torch.Generator().manual_seed(3)
    expected = stream_of(teachers, weights.tolist()).mean(torch.float64)
    for _ in range(1000):
        order = torch.randperm(20, generator=shuffled)
        assert torch.equal(stream_of(teachers[order], weights[order].tolist()).mean(torch.float64), expected)


def test_streams_that_ran_apart_are_one(logits: Tensor) -> None:
    expected = stream_of(logits, SIZES.tolist())
    for cut in range(TEACHERS + 1):
        parts = [stream_of(logits[part], SIZES[part].tolist()) for part in (slice(cut), slice(cut, None))]
        for first, second in itertools.permutations(parts):
            merged = stream_of(logits[:0])
            merged.merge(first)
            merged.merge(second)
            assert torch.equal(merged.total, expected.total)
            assert merged.weight == expected.weight


def test_a_weight_is_as_good_as_coming_again(logits: Tensor) -> None:
    thrice = stream_of(logits[[0, 1, 0, 0]])
    assert torch.equal(stream_of(logits[:2], [3, 1]).total, thrice.total)


def test_it_is_exact_up_to_the_edge_of_its_range() -> None:
    stream = StreamedMean((2,), limit=1, capacity=2**16)
    for _ in range(4):
        stream.add(torch.tensor([1.0, -1.0]), weight=2**14)
    assert stream.total.tolist() == [2**62, -(2**62)]
    assert stream.mean().tolist() == [1, -1]


def test_memory_does_not_grow(logits: Tensor) -> None:
    stream = stream_of(logits)
    assert stream.total.dtype == torch.int64
    assert stream.total.shape == SHAPE
    assert [value for value in vars(stream).values() if isinstance(value, Tensor)] == [stream.total]


def test_a_teacher_that_does_not_fit_leaves_the_stream_as_it_was(logits: Tensor) -> None:
    stream = stream_of(logits, limit=16, capacity=8)
    before = stream.total.clone()
    unfit = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"values: expected shape \(6, 4\), found \(6, 3\)"):
        stream.add(unfit[:, 1:])
    for number in (math.nan, math.inf, -math.inf):
        unfit[1, 2] = number
        with pytest.raises(ValueError, match=f"values: expected finite numbers.*found {number}"):
            stream.add(unfit)
    unfit[1, 2] = -16.5
    with pytest.raises(ValueError, match=r"values: expected numbers up to 16, found 16\.5"):
        stream.add(unfit)
    with pytest.raises(ValueError, match="values: expected floating-point numbers"):
        stream.add(unfit.long())
    for weight in (0, -1, 1.5, True, math.nan):
        with pytest.raises(ValueError, match=f"weight: expected an integer of 1 or more, found {weight}"):
            stream.add(logits[0], weight=weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight: expected weights that sum to at most 8, found 7 and 2 more"):
        stream.add(logits[0], weight=2)
    with pytest.raises(ValueError, match="other: expected weights that sum to at most 8, found 7 and 7 more"):
        stream.merge(stream)
    with pytest.raises(ValueError, match="other: expected a stream of shape, limit and capacity"):
        stream.merge(stream_of(logits, limit=32, capacity=8))
    assert torch.equal(stream.total, before)
    assert stream.weight == 7


@pytest.mark.parametrize(
    ("range_", "message"),
    [
        ({"limit": 3}, "limit: expected a power of two, found 3"),
        ({"limit": 0}, "limit: expected a power of two, found 0"),
        ({"limit": math.inf}, "limit: expected a power of two, found inf"),
        ({"capacity": 1000}, "capacity: expected a power of two, found 1000"),
        ({"capacity": 0.5}, "capacity: expected at least 1"),
        ({"limit": 2**30, "capacity": 2**32}, r"limit and capacity: expected a product of at most 2\*\*61"),
    ],
)
def test_refuses_other_ranges(range_: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamedMean((2, 3), **range_)  # type: ignore[arg-type]


def test_refuses_a_mean_of_nobody() -> None:
    with pytest.raises(ValueError, match="stream: expected at least one teacher, found none"):
        StreamedMean((2, 3)).mean()


@pytest.mark.parametrize("three", [np.int64(3), np.uint8(3), torch.tensor(3), torch.tensor(3, dtype=torch.int32)])
def test_weights_are_integers_of_any_library(three: int) -> None:
    stream, expected = StreamedMean((2,), limit=1), StreamedMean((2,), limit=1)
    for weight, one in ((three, stream), (3, expected)):
        one.add(torch.tensor([0.25, 0.5]), weight=weight)
        one.add(torch.tensor([0.75, 0.0]))
    assert stream.mean().tolist() == expected.mean().tolist() == [0.375, 0.375]
    assert type(stream.weight) is int
    for other in (np.float64(3), torch.tensor(3.0), torch.tensor([3]), torch.tensor(True), True, "3", None):
        with pytest.raises(ValueError, match=r"^weight: expected an integer of 1 or more, found "):
            stream.add(torch.tensor([0.25, 0.5]), weight=other)  # type: ignore[arg-type]
