"""Weights: those of the model that travels, and no others."""

import pytest
import torch

from fedkd.knowledge import KnowledgeError, Weights
from tests.knowledge.examples import CONTRACT


def test_weights_of_another_model_than_the_one_that_travels_are_refused() -> None:
    with pytest.raises(KnowledgeError, match=r"w: expected torch.float32 of shape \(2, 2\)"):
        Weights({"w": torch.ones(4, 2), "n": torch.tensor(7)}).check(CONTRACT)
    with pytest.raises(KnowledgeError, match="weights: expected the fields"):
        Weights({"v": torch.ones(3, dtype=torch.float64)}).check(CONTRACT)
