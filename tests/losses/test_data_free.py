"""Losses without data: formulas in float64 NumPy, and what is particular to each."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedkd import losses
from tests.losses.conftest import STUDENT, TEACHER, kl, softmax

FEATURES = np.random.default_rng(0).normal(size=(5, 3, 2, 2))
MEAN, VARIANCE = np.array([0.5, -1.0, 0.2]), np.array([1.5, 0.4, 2.0])


@pytest.fixture
def teacher() -> Tensor:
    return torch.tensor(TEACHER, requires_grad=True)


def test_one_hot_equals_the_formula(teacher: Tensor) -> None:
    expected = -np.log(softmax(TEACHER).max(axis=1)).mean()
    assert losses.one_hot(teacher).item() == pytest.approx(expected, rel=1e-9)
    assert losses.one_hot(100 * teacher).item() == pytest.approx(0.0, abs=1e-6)


def test_information_entropy_equals_the_formula(teacher: Tensor) -> None:
    mean = softmax(TEACHER).mean(axis=0)
    assert losses.information_entropy(teacher).item() == pytest.approx((mean * np.log(mean)).sum(), rel=1e-9)
    code = losses.information_entropy(teacher, variant="code").item()
    assert code == pytest.approx((mean * np.log10(mean)).sum(), rel=1e-9)


def test_information_entropy_is_least_where_classes_are_equally_frequent() -> None:
    each_once = 50 * torch.eye(4, dtype=torch.float64)
    assert losses.information_entropy(each_once).item() == pytest.approx(-math.log(4), rel=1e-9)
    assert losses.information_entropy(each_once, variant="code").item() == pytest.approx(-math.log10(4), rel=1e-9)
    assert losses.information_entropy(each_once[:1]).item() == pytest.approx(0.0, abs=1e-9)


def test_activation_equals_the_formulas() -> None:
    features = torch.tensor(FEATURES)
    assert losses.activation(features).item() == pytest.approx(-np.abs(FEATURES).sum() / FEATURES.size, rel=1e-9)
    paper = losses.activation(features, variant="paper").item()
    assert paper == pytest.approx(-np.abs(FEATURES).reshape(5, -1).sum(axis=1).mean(), rel=1e-9)
    assert losses.activation(torch.zeros(2, 3)).item() == 0.0


def test_batchnorm_statistics_equal_the_formula() -> None:
    means, variances = FEATURES.mean(axis=(0, 2, 3)), FEATURES.var(axis=(0, 2, 3))
    expected = np.linalg.norm(means - MEAN) + np.linalg.norm(variances - VARIANCE)
    found = losses.batchnorm_statistics(torch.tensor(FEATURES), torch.tensor(MEAN), torch.tensor(VARIANCE)).item()
    assert found == pytest.approx(expected, rel=1e-9)
    rows, columns = torch.tensor(FEATURES[:, :, 0, 0]), FEATURES[:, :, 0, 0]
    expected = np.linalg.norm(columns.mean(axis=0) - MEAN) + np.linalg.norm(columns.var(axis=0) - VARIANCE)
    found = losses.batchnorm_statistics(rows, torch.tensor(MEAN), torch.tensor(VARIANCE)).item()
    assert found == pytest.approx(expected, rel=1e-9)


def test_statistics_that_agree_cost_nothing() -> None:
    features = torch.tensor(FEATURES, requires_grad=True)
    mean, variance = (torch.tensor(f(FEATURES, axis=(0, 2, 3))) for f in (np.mean, np.var))
    loss = losses.batchnorm_statistics(features, mean, variance)
    assert loss.item() == pytest.approx(0.0, abs=1e-14)
    (gradient,) = torch.autograd.grad(loss, features)
    assert gradient.isfinite().all()


def test_synthesis_leaves_the_teacher_as_it_is() -> None:
    layer = nn.BatchNorm2d(3).double().eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    features = torch.tensor(FEATURES, requires_grad=True)
    losses.batchnorm_statistics(layer(features), layer.running_mean, layer.running_var).backward()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert features.grad is not None


def test_dfad_generator_equals_the_formulas(student: Tensor, teacher: Tensor) -> None:
    difference = np.abs(STUDENT - TEACHER).sum() / 16
    assert losses.dfad_generator(student, teacher).item() == pytest.approx(-np.log(1 + difference), rel=1e-9)
    assert losses.dfad_generator(student, teacher, variant="code").item() == pytest.approx(-difference, rel=1e-9)
    opposite = losses.logit_mae(student, teacher).item()  # what the student minimises
    assert losses.dfad_generator(student, teacher, variant="code").item() == -opposite


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_zskt_generator_equals_the_formulas(temperature: float, student: Tensor, teacher: Tensor) -> None:
    divergence = kl(softmax(TEACHER / temperature), softmax(STUDENT / temperature))
    found = losses.zskt_generator(student, teacher, temperature=temperature).item()
    assert found == pytest.approx(-divergence.mean(), rel=1e-9)
    code = losses.zskt_generator(student, teacher, temperature=temperature, variant="code").item()
    assert code == pytest.approx(-divergence.sum() / 16, rel=1e-9)


@pytest.mark.parametrize("loss", [losses.dfad_generator, losses.zskt_generator])
def test_a_generator_hears_from_both_networks_and_wants_them_to_differ(
    loss: object, student: Tensor, teacher: Tensor
) -> None:
    assert callable(loss)
    ours, theirs = torch.autograd.grad(loss(student, teacher), [student, teacher])
    assert ours.abs().sum() > 0
    assert theirs.abs().sum() > 0
    assert loss(student, student).item() == 0.0 > loss(student, teacher).item()


def test_metadata_reconstruction_equals_the_formula() -> None:
    layers = [(STUDENT, TEACHER), (STUDENT[:, :2], TEACHER[:, 2:])]
    expected = sum(
        ((np.maximum(wanted, 0) - np.maximum(found, 0)) ** 2).mean() / found.shape[1] for found, wanted in layers
    )
    found = losses.metadata_reconstruction(*(list(map(torch.tensor, tensors)) for tensors in zip(*layers, strict=True)))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_metadata_reconstruction_does_not_look_below_zero(student: Tensor) -> None:
    lower = [torch.where(student > 0, student, 5 * student)]
    assert losses.metadata_reconstruction(lower, [student]).item() == 0.0


def test_metadata_reconstruction_refuses_layers_that_do_not_fit(student: Tensor) -> None:
    with pytest.raises(ValueError, match=r"targets: expected one for each of 2 layers \(1 or more\), found 1"):
        losses.metadata_reconstruction([student, student], [student])
    with pytest.raises(ValueError, match=r"targets: expected one for each of 0 layers"):
        losses.metadata_reconstruction([], [])
    with pytest.raises(ValueError, match=r"targets\[1\]: expected shape \(4, 4\), found \(4, 3\)"):
        losses.metadata_reconstruction([student, student], [student, student[:, :3]])


def whitened(columns: int) -> np.ndarray:
    """Return noise whose mean is zero and whose covariance is exactly the identity."""
    noise = np.random.default_rng(1).normal(size=(50, columns))
    noise -= noise.mean(axis=0)
    return noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise.T, ddof=0))).T


@pytest.mark.parametrize("rank", [3, 1])
def test_sampled_activations_have_the_requested_mean_and_covariance(rank: int) -> None:
    factor = np.random.default_rng(2).normal(size=(3, rank))
    covariance = factor @ factor.T  # with rank 1, singular: no Cholesky factor
    drawn = losses.sample_activations(torch.tensor(MEAN), torch.tensor(covariance), torch.tensor(whitened(3)))
    np.testing.assert_allclose(drawn.numpy().mean(axis=0), MEAN, atol=1e-12)
    np.testing.assert_allclose(np.cov(drawn.numpy().T, ddof=0), covariance, atol=1e-10)


def test_sampled_activations_refuse_what_does_not_fit() -> None:
    mean, covariance, noise = torch.zeros(3), torch.eye(3), torch.zeros(5, 3)
    with pytest.raises(ValueError, match=r"covariance: expected shape \(3, 3\), found \(2, 2\)"):
        losses.sample_activations(mean, torch.eye(2), noise)
    with pytest.raises(ValueError, match=r"noise: expected shape \(N, 3\), found \(5, 2\)"):
        losses.sample_activations(mean, covariance, noise[:, :2])
    with pytest.raises(ValueError, match="covariance: expected finite numbers, found nan"):
        losses.sample_activations(mean, covariance * math.nan, noise)


def test_settings_out_of_range_are_refused(student: Tensor, teacher: Tensor) -> None:
    calls = [
        lambda: losses.information_entropy(teacher, variant="log2"),
        lambda: losses.activation(teacher, variant="log2"),
        lambda: losses.dfad_generator(student, teacher, variant="log2"),
        lambda: losses.zskt_generator(student, teacher, variant="log2"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="variant: expected one of 'paper', 'code', found 'log2'"):
            call()
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0"):
        losses.zskt_generator(student, teacher, temperature=0.0)
