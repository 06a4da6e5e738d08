"""Features: means per class."""

import numpy as np
import torch

from fedkd.knowledge import Contract, Prototypes
from tests.knowledge.examples import IDS, LABELS, class_means


def test_prototypes_are_mean_features_of_each_class() -> None:
    features = np.random.default_rng(1).normal(size=(6, 4))
    expected = class_means(features)
    found = Prototypes.of(torch.tensor(features), torch.tensor(LABELS), classes=5)
    assert found.counts.tolist() == [2, 0, 3, 0, 1]
    assert found.present.tolist() == [True, False, True, False, True]
    for label in range(5):
        np.testing.assert_allclose(found.means[label], expected.get(label, np.zeros(4)), rtol=1e-12)
    found.check(Contract(5, 4, IDS, {}))


def test_class_means_are_summed_in_float64() -> None:
    features = torch.tensor([[1.0], [2.0**-24], [2.0**-24]])  # in float32 the small ones would be lost one by one
    found = Prototypes.of(features, torch.tensor([0, 0, 0]), classes=1)
    assert found.means.dtype == torch.float32
    assert found.means.item() == np.float32((1 + 2.0**-23) / 3)


def test_without_samples_every_class_is_absent() -> None:
    found = Prototypes.of(torch.zeros(0, 3), torch.empty(0, dtype=torch.int64), 3)
    assert not found.present.any()
    assert all(not tensor.any() for tensor in found.to_tensors().values())
    found.check(Contract(3, 3, IDS, {}))
