"""Statistics of layers: every layer has a mean, spreads fit it, and no variance is negative."""

import pytest
import torch
from torch import Tensor

from fedkd.knowledge import KnowledgeError, Statistics
from tests.knowledge.examples import CONTRACT

MEAN, SPREAD = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 3.0])


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a.mean": MEAN, "a.variance": SPREAD - 1}, "a.variance: expected variances of 0 or more, found -1.0"),
        ({"a.variance": SPREAD}, "a mean for every layer, found 'a.variance'"),
        ({"a.mean": MEAN, "b.variance": SPREAD}, "a mean for every layer, found 'b.variance'"),
        ({"a.mean": MEAN, "a.kurtosis": SPREAD}, "found 'a.kurtosis'"),
        ({"mean": MEAN}, "found 'mean'"),
        ({"a.mean": MEAN, "a.variance": SPREAD[:1]}, r"a.variance: .*\(2,\), found .*\(1,\)"),
        ({"a.mean": MEAN, "a.covariance": SPREAD}, r"a.covariance: .*\(2, 2\), found .*\(2,\)"),
        ({"a.mean": MEAN[:, None]}, r"a.mean: .*\(2,\), found .*\(2, 1\)"),
        ({"a.mean": MEAN.long()}, "a.mean: expected floating point"),
        ({"a.mean": MEAN / 0}, "a.mean: expected finite"),
    ],
)
def test_what_does_not_fit_is_refused(tensors: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(KnowledgeError, match=reason):
        Statistics(tensors).check(CONTRACT)


def test_a_covariance_may_be_negative() -> None:
    Statistics({"a.b.mean": MEAN, "a.b.covariance": torch.tensor([[1.0, -1.0], [-1.0, 1.0]])}).check(CONTRACT)
