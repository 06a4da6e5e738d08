"""The architecture for composite views: a branch for each part, none of which sees another's values."""

import pytest
import torch

from fedkd import models
from fedkd.errors import UserError
from fedkd.models import ModelSpec
from fedkd.models.shapes import InputShape
from tests.models.checks import a_cohort_equals_one_by_one, a_gradient_reaches_every_parameter, accuracy_after

PARTS = ((1, 8, 8), (3, 16), (20,), ())


@pytest.mark.parametrize(
    "shape", [PARTS, ((3, 128), (3, 128)), ((1, 28, 28), (1, 32, 63)), (1, 8, 8), (3, 16), (5,)], ids=str
)
def test_output_shapes(shape: InputShape) -> None:
    spec = ModelSpec("fusion", shape, classes=7, feature_width=12)
    model, inputs = models.build(spec), torch.randn(3, *spec.sample_shape)
    assert model.features(inputs).shape == (3, 12)
    assert torch.equal(model(inputs), model(inputs))


def test_each_branch_is_the_architecture_of_its_part() -> None:
    spec = ModelSpec("fusion", PARTS, classes=7, feature_width=12)
    branches = models.build(spec).features.get_submodule("0.branches").children()
    names = ("spectrogram-cnn", "signal-cnn", "vector", "vector")
    for name, part, branch in zip(names, ((1, 8, 8), (3, 16), (20,), (1,)), branches, strict=True):
        alone = models.build(ModelSpec(name, part, classes=7, feature_width=12)).features
        assert repr(branch) == repr(alone)


def test_each_branch_gets_its_own_part_in_its_own_shape() -> None:
    joined = models.build(ModelSpec("fusion", ((1, 4, 4), (2, 8)), classes=3, feature_width=5)).features[0]
    images, signals = torch.randn(3, 1, 4, 4), torch.randn(3, 2, 8)
    found = joined(torch.cat([images.flatten(1), signals.flatten(1)], dim=1))
    image_branch, signal_branch = joined.branches
    assert torch.equal(found, torch.cat([image_branch(images), signal_branch(signals)], dim=1))


def test_a_cohort_equals_one_by_one() -> None:
    a_cohort_equals_one_by_one(ModelSpec("fusion", PARTS, classes=5, feature_width=6))


def test_a_gradient_step_reaches_every_parameter() -> None:
    a_gradient_reaches_every_parameter(ModelSpec("fusion", ((1, 8, 8), (3, 16), (20,)), classes=3))


def test_learns_what_only_both_parts_tell() -> None:
    """Four classes: the signal's wave tells one bit, the vector's sign the other."""
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    waves = torch.sin(2 * torch.pi * (2 + 6 * (labels // 2))[:, None] * torch.arange(32) / 32)
    signs = (2.0 * (labels % 2) - 1)[:, None] * torch.ones(3)
    noise = 0.4 * torch.randn(400, 35, generator=source)
    inputs = torch.cat([waves, signs], dim=1) + noise
    assert accuracy_after("fusion", inputs, labels, steps=40, parts=((1, 32), (3,))) > 0.95


def test_refuses_other_parts() -> None:
    with pytest.raises(UserError, match=r"'fusion': expected parts that are images .*, found input shape \(\(3, 8\), "):
        models.build(ModelSpec("fusion", ((3, 8), (2, 3, 8, 8)), classes=3))
    with pytest.raises(UserError, match=r"'fusion': expected images .* of at least 2x2"):
        models.build(ModelSpec("fusion", ((3, 8), (1, 1, 8)), classes=3))
