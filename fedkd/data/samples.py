"""Samples of one party: stable ids, one view of each, and what they should be taught."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedkd.errors import UserError


@dataclass(frozen=True)
class Samples:
    """Some samples as one party sees them.

    Attributes:
        ids: stable sample ids, int64, shape ``(N,)``.
        inputs: one view of the samples, shape ``(N, ...)``.
        targets: named per-sample targets, each ``(N, ...)``: ``labels`` (int64), ``teacher`` (logits), ...
    """

    ids: Tensor
    inputs: Tensor
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse fields that are not aligned by sample."""
        for name, values in {"inputs": self.inputs, **self.targets}.items():
            if len(values) != len(self.ids):
                raise UserError(
                    f"samples: expected {len(self.ids)} rows in {name!r} (one per id), found {len(values)}."
                )

    def __len__(self) -> int:
        """Return the number of samples ``N``."""
        return len(self.ids)

    @property
    def labels(self) -> Tensor:
        """The class labels, int64, shape ``(N,)``."""
        return self.targets["labels"]

    def take(self, rows: Tensor) -> "Samples":
        """Return the samples at the given row numbers, int64, shape ``(M,)``, in that order."""
        return Samples(self.ids[rows], self.inputs[rows], {name: values[rows] for name, values in self.targets.items()})

    def by_id(self, ids: Tensor) -> "Samples":
        """Return the samples with the given ids, shape ``(M,)``, in that order.

        Raises:
            UserError: an id is not among these samples.
        """
        order = torch.argsort(self.ids)
        place = torch.searchsorted(self.ids[order], ids).clamp(max=max(len(self) - 1, 0))
        rows = order[place] if len(self) else order[:0]
        if len(rows) != len(ids) or not torch.equal(self.ids[rows], ids):
            raise UserError(
                f"samples: {len(ids)} ids were asked for, of which some are not among these {len(self)} samples."
            )
        return self.take(rows)

    def divide(self, ids: Tensor) -> tuple["Samples", "Samples"]:
        """Return the samples whose ids are among the given ones, shape ``(M,)``, and the others, in their order."""
        given = torch.isin(self.ids, ids)
        return self.take(given.nonzero()[:, 0]), self.take((~given).nonzero()[:, 0])

    def with_targets(self, **targets: Tensor) -> "Samples":
        """Return the same samples with exactly these targets, each of shape ``(N, ...)``."""
        return replace(self, targets=targets)
