"""Fitted temperatures and scalings: known ones are found again, and no other has a smaller loss."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import calibration
from fedkd.calibration import (
    Scaling,
    fit_matrix_scaling,
    fit_temperature,
    fit_temperatures,
    fit_vector_scaling,
    negative_log_likelihood,
)


def sampled(samples: int, classes: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from their softmax: calibrated by construction."""
    values = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=values, dtype=torch.float64)
    return logits, torch.multinomial(torch.softmax(logits, dim=1), 1, generator=values).flatten()


def loss(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Negative log-likelihood in NumPy."""
    rows = logits.numpy() / temperature
    rows = rows - rows.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), labels.numpy()]))


@pytest.mark.parametrize("true", [0.3, 0.5, 1.0, 1.5, 3.0, 8.0, 10.0])
def test_a_known_temperature_is_found_again(true: float) -> None:
    logits, labels = sampled(100_000)  # a million logits
    found = fit_temperature((logits * true).float(), labels)
    assert found == pytest.approx(true, rel=0.01)


@pytest.mark.parametrize("true", [0.02, 0.3, 1.0, 8.0, 60.0])
def test_it_is_the_optimum_of_a_golden_section_search(true: float) -> None:
    logits, labels = sampled(500)
    logits = logits * true
    low, high, ratio = math.log(0.001), math.log(1000), (math.sqrt(5) - 1) / 2
    while high - low > 1e-9:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(logits, labels, math.exp(left)) < loss(logits, labels, math.exp(right)):
            high = right
        else:
            low = left
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(math.exp((low + high) / 2), rel=1e-6)  # a flat optimum: half of the digits are known
    rows = logits.numpy() - logits.numpy().max(axis=1, keepdims=True)
    powers = np.exp(rows / found)
    mean = (powers * rows).sum(axis=1) / powers.sum(axis=1)
    slope = mean.mean() - rows[np.arange(500), labels.numpy()].mean()
    assert abs(slope) < 1e-9 * abs(rows).mean()


def test_scaling_the_logits_scales_the_temperature_and_shifting_does_nothing() -> None:
    logits, labels = sampled(300)
    one = fit_temperature(logits, labels)
    assert fit_temperature(7 * logits, labels) == pytest.approx(7 * one, rel=1e-9)
    shifted = logits + 1000 * torch.randn(300, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert fit_temperature(shifted, labels) == pytest.approx(one, rel=1e-9)


def test_the_fit_calibrates_and_changes_no_prediction() -> None:
    logits, labels = sampled(20_000)
    loud = 8 * logits
    cooled = loud / fit_temperature(loud, labels)
    assert torch.equal(cooled.argsort(dim=1), loud.argsort(dim=1))
    before, after = (
        calibration.expected_calibration_error(torch.softmax(rows, dim=1), labels) for rows in (loud, cooled)
    )
    assert before > 0.2
    assert after < 0.02
    assert negative_log_likelihood(cooled, labels) < negative_log_likelihood(loud, labels) / 2


def test_bounds_are_returned_where_the_optimum_lies_beyond() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert fit_temperature(logits, torch.tensor([0, 1])) == 0.01  # all right: the colder the better
    assert fit_temperature(logits, torch.tensor([1, 0])) == 100  # all wrong: the hotter the better
    assert fit_temperature(logits, torch.tensor([0, 1]), low=0.5, high=2) == 0.5
    assert fit_temperature(torch.zeros(3, 2), torch.tensor([0, 1, 1])) == 1
    assert fit_temperature(torch.zeros(3, 2), torch.tensor([0, 1, 1]), low=3, high=5) == 3
    loud, labels = sampled(500)
    assert fit_temperature(loud * 1000, labels) == 100


def test_saturated_logits_are_no_obstacle() -> None:
    logits = torch.tensor([[3e4, 0.0, -3e4], [3e4, 0.0, -3e4], [3e4, 0.0, -3e4], [0.0, 1.0, 0.0]])
    found = fit_temperature(logits, torch.tensor([0, 0, 1, 1]), high=1e9)
    assert loss(logits.double(), torch.tensor([0, 0, 1, 1]), found) <= min(
        loss(logits.double(), torch.tensor([0, 0, 1, 1]), found * factor) for factor in (0.5, 0.99, 1.01, 2)
    )


def test_a_temperature_for_each_client() -> None:
    logits, labels = sampled(400)
    scales = torch.tensor([0.5, 1.0, 20.0], dtype=torch.float64)
    clients = scales[:, None, None] * logits
    found = fit_temperatures(clients, labels)
    assert found.tolist() == [fit_temperature(client, labels) for client in clients]
    even = clients / found[:, None, None]
    np.testing.assert_allclose(even[0], even[2], rtol=1e-9)


def test_known_vector_and_matrix_scalings_are_found_again() -> None:
    logits, labels = sampled(100_000, classes=3)
    factor, shift = torch.tensor([2.0, 0.5, 1.0]).double(), torch.tensor([0.5, -1.0, 0.5]).double()
    found = fit_vector_scaling((logits - shift) / factor, labels)
    np.testing.assert_allclose(found.weight, factor, atol=0.05)
    np.testing.assert_allclose(found.bias - found.bias.mean(), shift, atol=0.05)

    matrix = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.8, 0.0], [-0.4, 0.0, 1.2]]).double()
    mixed = torch.linalg.solve(matrix, logits.T).T
    scaled = fit_matrix_scaling(mixed, labels)(mixed)
    np.testing.assert_allclose(torch.softmax(scaled, dim=1), torch.softmax(logits, dim=1), atol=0.05)


@pytest.mark.parametrize("fit", [fit_vector_scaling, fit_matrix_scaling])
def test_scalings_are_optima(fit: object) -> None:
    assert callable(fit)
    logits, labels = sampled(2000, classes=4, seed=3)
    loud = 3 * logits + torch.arange(4)
    found = fit(loud, labels)
    rows = found(loud)
    probabilities = torch.softmax(rows, dim=1) - torch.nn.functional.one_hot(labels, 4)
    # The slope of the likelihood is what the penalty of 1e-6 outweighs.
    identity = torch.ones(4) if found.weight.ndim == 1 else torch.eye(4)
    outer = (probabilities[:, :, None] * loud[:, None, :]).mean(dim=0)
    slope = outer.diagonal() if found.weight.ndim == 1 else outer
    np.testing.assert_allclose(slope + 2e-6 * (found.weight - identity), 0, atol=1e-7)
    np.testing.assert_allclose(probabilities.mean(dim=0) + 2e-6 * found.bias, 0, atol=1e-7)
    cooled = loud / fit_temperature(loud, labels)
    assert negative_log_likelihood(rows, labels) < negative_log_likelihood(cooled, labels)


@pytest.mark.parametrize("fit", [fit_vector_scaling, fit_matrix_scaling])
def test_samples_that_are_all_right_have_a_finite_scaling(fit: object) -> None:
    assert callable(fit)
    found = fit(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert torch.isfinite(found.weight).all()
    assert found.weight.abs().max() > 2
    stiff = fit(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), penalty=1e6)
    np.testing.assert_allclose(stiff.weight, torch.ones(2) if stiff.weight.ndim == 1 else torch.eye(2), atol=1e-5)


def test_fits_leave_their_inputs_alone() -> None:
    logits, labels = sampled(50)
    logits = logits.float().requires_grad_()
    before = logits.detach().clone()
    assert fit_vector_scaling(logits, labels)(logits).dtype == torch.float32
    fit_temperature(logits, labels)
    assert torch.equal(logits, before)
    assert logits.grad is None


def test_refuses_settings_out_of_range() -> None:
    logits, labels = sampled(5)
    for low, high in ((0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(ValueError, match=f"low and high: expected finite numbers.*found {low} and {high}"):
            fit_temperature(logits, labels, low=low, high=high)
    for penalty in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"penalty: expected a finite number above 0, found {penalty}"):
            fit_matrix_scaling(logits, labels, penalty=penalty)
    for shape in ((5, 10), (0, 5, 10)):
        with pytest.raises(ValueError, match=r"logits: expected shape \(K, N, C\) with K at least 1, found"):
            fit_temperatures(torch.zeros(shape), labels)
    with pytest.raises(ValueError, match=r"logits: expected shape \(N, 10\), found \(5, 9\)"):
        fit_vector_scaling(logits, labels)(logits[:, 1:])


@pytest.mark.parametrize("fit", [fit_vector_scaling, fit_matrix_scaling])
def test_scaling_is_fitted_in_any_mode(fit: Callable[[Tensor, Tensor], Scaling]) -> None:
    logits, labels = sampled(50)
    expected = fit(logits, labels)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            found = fit(logits * 1, labels * 1)  # tensors of that mode
            assert torch.equal(found.weight, expected.weight)
            assert torch.equal(found.bias, expected.bias)
            assert found(logits).shape == logits.shape
