"""Predictions: means per class, and softmax."""

import numpy as np
import pytest
import torch

from fedkd.knowledge import ClassLogits, Contract, KnowledgeError, SoftLabels
from tests.knowledge.examples import CONTRACT, IDS, LABELS, WIDTH, class_means, soft_labels


def test_not_contiguous_and_other_float_types_are_fine() -> None:
    soft_labels(torch.randn(3, 4).T).check(CONTRACT)
    soft_labels(torch.randn(4, 3, dtype=torch.float64)).check(CONTRACT)
    soft_labels(torch.randn(8, 6)[::2, ::2], torch.stack([IDS, IDS], dim=1)[:, 0]).check(CONTRACT)
    with pytest.raises(KnowledgeError, match="finite"):
        soft_labels(torch.randn(3, 4).T.index_fill(0, torch.tensor(1), torch.nan)).check(CONTRACT)


def test_class_logits_are_mean_probabilities_of_each_class() -> None:
    logits = np.random.default_rng(0).normal(scale=3, size=(6, 5))
    powers = np.exp(logits)
    expected = class_means(powers / powers.sum(axis=1, keepdims=True))
    found = ClassLogits.of(torch.tensor(logits), torch.tensor(LABELS), classes=5)
    assert found.present.tolist() == [True, False, True, False, True]
    for label in range(5):
        np.testing.assert_allclose(found.probabilities[label], expected.get(label, np.zeros(5)), rtol=1e-12)
    found.check(Contract(5, WIDTH, IDS, {}))


def test_without_samples_every_class_is_absent() -> None:
    found = ClassLogits.of(torch.zeros(0, 3), torch.empty(0, dtype=torch.int64), 3)
    assert not found.present.any()
    assert all(not tensor.any() for tensor in found.to_tensors().values())
    found.check(Contract(3, 3, IDS, {}))


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    logits = torch.tensor([[0.0, np.log(3)], [1000.0, 0.0]], dtype=torch.float32)
    torch.testing.assert_close(SoftLabels(IDS[:2], logits).probabilities, torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
