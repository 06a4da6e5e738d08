"""The architecture for vectors: any units, vectorised runs, and refusals."""

import numpy as np
import pytest
import torch

from fedkd import models
from fedkd.errors import UserError
from fedkd.models import ModelSpec
from fedkd.models.vector import SignedLogarithm
from tests.models.checks import a_cohort_equals_one_by_one, a_gradient_reaches_every_parameter, accuracy_after


@pytest.mark.parametrize("features", [1, 6, 47, 216])
def test_output_shapes(features: int) -> None:
    model, inputs = models.build(ModelSpec("vector", (features,), 7, feature_width=12)), torch.randn(3, features)
    assert model.features(inputs).shape == (3, 12)
    assert torch.equal(model(inputs), model(inputs))


@pytest.mark.parametrize("features", [6, 20])
def test_a_cohort_equals_one_by_one(features: int) -> None:
    a_cohort_equals_one_by_one(ModelSpec("vector", (features,), classes=5, feature_width=6))


@pytest.mark.parametrize("features", [6, 20])
def test_a_gradient_step_reaches_every_parameter(features: int) -> None:
    a_gradient_reaches_every_parameter(ModelSpec("vector", (features,), classes=3))


def test_the_signed_logarithm() -> None:
    values = np.array([-17572.0, -1.0, 0.0, 1e-3, 1.0, 1353.0])
    expected = [-np.log(17573.0), -np.log(2.0), 0, np.log(1.001), np.log(2.0), np.log(1354.0)]
    np.testing.assert_allclose(SignedLogarithm()(torch.tensor(values)), expected, rtol=1e-12)


def test_learns_from_features_of_very_different_sizes() -> None:
    """One feature in thousands says nothing, one below 1 says everything; a plain MLP does not find it so soon."""
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    noise = torch.randn(200, 4, generator=source)
    inputs = torch.stack([9000 + 5000 * noise[:, 0], 300 * noise[:, 1], labels + 0.2 * noise[:, 2]], dim=1)
    assert accuracy_after("vector", inputs, labels, steps=60) > 0.9
    assert accuracy_after("mlp", inputs, labels, steps=60) < 0.9


def test_a_lone_feature_is_not_lost() -> None:
    labels = torch.arange(100) % 2
    inputs = labels[:, None] * 3.0 + torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    assert accuracy_after("vector", inputs, labels, steps=60) > 0.85


@pytest.mark.parametrize("shape", [(1, 8), (1, 8, 8), ()], ids=str)
def test_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"model 'vector': expected vectors \(features,\), found input shape"):
        models.build(ModelSpec("vector", shape, classes=3))
