"""What the losses refuse, and where they cannot look."""

import math

import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fedkd.checks import (
    all_finite,
    expect_choice,
    expect_finite,
    expect_integer,
    expect_labels,
    expect_numbers,
    expect_positive,
    expect_tensor,
    expect_within,
    sum_tolerance,
)
from fedkd.losses import values_unchecked

NANS = torch.full((2, 3), math.nan)
INF, NAN, LARGEST = math.inf, math.nan, torch.finfo(torch.float32).max


def checked(values: torch.Tensor) -> torch.Tensor:
    expect_finite("values", values)
    return values.square().sum()


def test_says_which_number_is_bad_and_how_many() -> None:
    values = torch.zeros(3, 4)
    values[1, 2] = math.inf
    values[2, 3] = math.nan
    with pytest.raises(ValueError, match=r"^values: expected finite numbers, found inf at \(1, 2\), and .* 2 of 12"):
        expect_finite("values", values)


@pytest.mark.parametrize("values", [[INF], [1.0, NAN], [INF, -INF], [LARGEST, LARGEST, NAN], [complex(0, INF)]])
def test_nan_and_infinity_are_seen_even_where_they_cancel(values: list[complex]) -> None:
    assert not all_finite(torch.tensor(values))
    with pytest.raises(ValueError, match=r"values: expected finite numbers, found "):
        expect_finite("values", torch.tensor(values))


@pytest.mark.parametrize("values", [[], [0.0, -1.5], [LARGEST, LARGEST], [complex(0, LARGEST), complex(0, LARGEST)]])
def test_numbers_are_finite_though_their_sum_may_not_be(values: list[complex]) -> None:
    assert all_finite(torch.tensor(values))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e5m2])
def test_types_that_cannot_be_summed_are_looked_at(dtype: torch.dtype) -> None:
    assert all_finite(torch.ones(2).to(dtype))
    if dtype.is_floating_point:
        assert not all_finite(torch.tensor([1.0, INF]).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finds_every_kind_of_bad_number(dtype: torch.dtype) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        for values in (torch.tensor([1.0, bad, 2.0], dtype=dtype), torch.tensor(bad, dtype=dtype)):
            with pytest.raises(ValueError, match=f"values: expected finite numbers, found {bad}"):
                expect_finite("values", values.requires_grad_())
    with pytest.raises(ValueError, match="found inf"):
        expect_finite("values", torch.tensor([math.inf, -math.inf], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_large_numbers_are_finite_even_if_their_sum_is_not(dtype: torch.dtype) -> None:
    expect_finite("values", torch.full((100,), torch.finfo(dtype).max, dtype=dtype))


def test_takes_integers_and_truth_values() -> None:
    expect_finite("values", torch.arange(3))
    expect_finite("values", torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"values: expected floating-point numbers, found torch\.int64"):
        expect_numbers("values", torch.arange(3))


def test_does_not_look_where_there_are_no_values() -> None:
    assert grad(checked)(NANS).isnan().all()
    assert vmap(checked)(NANS).isnan().all()
    for mode in ("real", "fake"):
        assert make_fx(checked, tracing_mode=mode)(NANS)(NANS).isnan()
    assert checked(NANS.to("meta")).is_meta
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(NANS)
    assert checked(fake).shape == ()


def test_looks_again_after_a_transform() -> None:
    grad(checked)(torch.ones(2))
    with pytest.raises(ValueError, match="found nan"):
        checked(NANS)


def test_does_not_look_when_told_not_to() -> None:
    with values_unchecked():
        assert checked(NANS).isnan()
        with values_unchecked():
            expect_labels("labels", torch.tensor([9]), 1, 3)
        assert checked(NANS).isnan()
    with pytest.raises(ValueError, match="found nan"):
        checked(NANS)
    with pytest.raises(RuntimeError, match="no matter what"), values_unchecked():
        raise RuntimeError("no matter what")
    with pytest.raises(ValueError, match="found nan"):
        checked(NANS)


def test_whole_numbers() -> None:
    expect_integer("k", 3, 1)
    expect_integer("k", 3, 1, 3)
    for bad in (0, 2.0, True, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"^k: expected an integer of 1 or more, found {bad}\\.$"):
            expect_integer("k", bad, 1)  # type: ignore[arg-type]
    for bad in (4, -1):
        with pytest.raises(ValueError, match=f"^k: expected an integer from 0 to 3, found {bad}\\.$"):
            expect_integer("k", bad, 0, 3)


def test_labels() -> None:
    expect_labels("labels", torch.tensor([0, 2]), 2, 3)
    for bad, found in ((-1, "-1"), (3, "3")):
        with pytest.raises(ValueError, match=f"labels: expected class numbers from 0 to 2, found {found}"):
            expect_labels("labels", torch.tensor([0, bad]), 2, 3)
    with pytest.raises(ValueError, match=r"found torch\.float32; call \.long\(\) on it\.$"):
        expect_labels("labels", torch.tensor([0.0, 1.0]), 2, 3)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.ones((2, 3)), r"ndarray of shape \(2, 3\); call torch.as_tensor on it"),
        ([1.0, 2.0], "list; call torch.as_tensor on it"),
        (5.0, "5.0; call torch.as_tensor on it"),
        ([torch.ones(2), torch.ones(2)], "list; call torch.stack on it"),
        ("logits", "'logits'"),
        (None, "None"),
    ],
)
def test_what_is_no_tensor_is_told_how_to_become_one(value: object, found: str) -> None:
    with pytest.raises(ValueError, match=f"^teacher: expected a tensor, found {found}\\.$"):
        expect_tensor("teacher", value)


@pytest.mark.parametrize("bad", ["4", None, [4.0], torch.ones(2)])
def test_settings_that_are_no_numbers(bad: object) -> None:
    with pytest.raises(ValueError, match=r"^temperature: expected a finite number above 0, found .*\.$"):
        expect_positive("temperature", bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^eta: expected a number from 0 to 1, found .*\.$"):
        expect_within("eta", bad, 0, 1)  # type: ignore[arg-type]
    if bad != "4":
        with pytest.raises(ValueError, match=r"^mode: expected one of '4', found .*\.$"):
            expect_choice("mode", bad, ["4"])  # type: ignore[arg-type]


def test_numbers_of_any_library_are_numbers() -> None:
    for value in (4, np.float32(4), np.int64(4), torch.tensor(4.0)):
        expect_positive("temperature", value)  # type: ignore[arg-type]


def test_how_far_from_1_a_sum_of_probabilities_may_be() -> None:
    assert sum_tolerance(torch.float64, 10) == sum_tolerance(torch.float32, 10) == 1e-3
    assert sum_tolerance(torch.bfloat16, 10) == 2 * 2**-7
    # The smallest steps of float16 are 2**-24: 50,000 numbers of half a step are 50,000 roundings.
    assert sum_tolerance(torch.float16, 50_000) == 2 * 2**-10 + 50_000 * 2**-24
