"""Two bytes per number: NumPy's rounding, the promised bounds, and nothing out of range."""

import numpy as np
import pytest
import torch

from fedkd.knowledge import KnowledgeError
from fedkd.knowledge.codecs import BFloat16, Float16, decode, encode, num_bytes

VALUES = np.random.default_rng(0).normal(size=(40, 10)) * 10.0 ** np.random.default_rng(1).integers(-8, 5, (40, 10))


def through(codec: Float16 | BFloat16, values: torch.Tensor) -> torch.Tensor:
    meanings = {"x": "weights"}
    return decode([codec], encode([codec], {"x": values}, meanings), meanings)["x"]  # type: ignore[arg-type]


def test_float16_rounds_as_numpy_does() -> None:
    values = VALUES.astype(np.float32).clip(-65504, 65504)
    found = through(Float16(), torch.from_numpy(values))
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, values.astype(np.float16).astype(np.float32))


def test_bfloat16_rounds_the_lower_half_of_float32_away_ties_to_even() -> None:
    values = np.concatenate([VALUES.astype(np.float32).ravel(), np.float32([1 + 2**-8, 1 + 3 * 2**-8])])
    bits = values.view(np.uint32)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(through(BFloat16(), torch.from_numpy(values)), expected)


@pytest.mark.parametrize(
    ("codec", "relative", "smallest"), [(Float16(), 2.0**-11, 2.0**-25), (BFloat16(), 2.0**-8, 0.0)]
)
def test_errors_stay_within_the_bound(codec: Float16, relative: float, smallest: float) -> None:
    values = VALUES.clip(-65504, 65504)
    error = np.abs(through(codec, torch.from_numpy(values)).numpy() - values)
    assert (error <= np.maximum(relative * np.abs(values) * (1 + 2.0**-20), smallest)).all()
    assert error.max() > 0


def test_bytes_are_two_per_number_and_the_form() -> None:
    coded = encode([Float16()], {"x": torch.ones(40, 10)}, {"x": "weights"})
    assert num_bytes(coded) == 2 * 400 + 4 * 3


@pytest.mark.parametrize(
    ("codec", "value", "dtype"),
    [(Float16(), 65520.0, torch.float32), (BFloat16(), 3.4e38, torch.float32), (BFloat16(), -1e300, torch.float64)],
)
def test_what_is_out_of_range_is_refused(codec: Float16, value: float, dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, value, 0.0, 0.0], dtype=dtype).expand(8, 4)
    with pytest.raises(
        KnowledgeError,
        match=rf"x: {codec.name}: expected numbers up to .* in size, found {abs(value):.6g}".replace("+", r"\+"),
    ):
        through(codec, values)
    assert through(Float16(), torch.full((8, 4), 65519.0))[0, 0] == 65504


def test_distributions_are_distributions_again() -> None:
    rows = torch.from_numpy(np.random.default_rng(2).dirichlet(np.full(50, 0.1), size=30).astype(np.float32))
    rows[3] = 0
    found = decode([Float16()], encode([Float16()], {"x": rows}, {"x": "probabilities"}), {"x": "probabilities"})["x"]
    np.testing.assert_allclose(found.double().sum(1), [0.0 if n == 3 else 1.0 for n in range(30)], atol=1e-6)
    assert (rows.half().double().sum(1) - rows.double().sum(1)).abs().max() > 1e-5, "they would have been anyway"
