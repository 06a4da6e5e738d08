"""One payload of every kind, with its size by hand, and payloads that must be refused."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.knowledge import (
    Bundle,
    ClassLogits,
    Contract,
    Features,
    Generator,
    Knowledge,
    Prototypes,
    SoftLabels,
    Statistics,
    Weights,
)

CLASSES, WIDTH = 3, 5
IDS = torch.tensor([8, 2, 9, 4])
SMALL = {"w": ((2, 2), torch.float32), "n": ((), torch.int64)}
CONTRACT = Contract(CLASSES, WIDTH, IDS, SMALL)


def soft_labels(logits: Tensor | None = None, ids: Tensor = IDS) -> SoftLabels:
    return SoftLabels(ids, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) if logits is None else logits)


def class_logits() -> ClassLogits:
    rows = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return ClassLogits(rows, torch.tensor([True, False, True]))


def prototypes() -> Prototypes:
    return Prototypes(torch.arange(15.0).reshape(3, 5), torch.tensor([4, 0, 1]))


def weights() -> Weights:
    return Weights({"w": torch.ones(2, 2), "n": torch.tensor(7)})


# One payload of every kind, and its size by hand: int64 and float64 take 8 bytes, float32 4, bool 1.
GOOD: dict[str, tuple[Knowledge, int]] = {
    "SoftLabels": (soft_labels(), 4 * 8 + 4 * 3 * 4),
    "ClassLogits": (class_logits(), 3 * 3 * 4 + 3),
    "Prototypes": (prototypes(), 3 * 5 * 4 + 3 * 8),
    "Features": (Features(IDS, torch.zeros(4, 5, dtype=torch.float64)), 4 * 8 + 4 * 5 * 8),
    "Weights": (weights(), 4 * 4 + 8),
    "Generator": (Generator({"a/b:c": torch.zeros(6).half(), "n": torch.tensor(3)}), 6 * 2 + 8),
    "Statistics": (Statistics({"bn.mean": torch.zeros(3), "bn.variance": torch.ones(3)}), 3 * 4 + 3 * 4),
    "Bundle": (
        Bundle({
            "first": weights(),
            "second": weights(),
            "inner": Bundle({"labels": soft_labels(), "again": Bundle({"p": prototypes()})}),
        }),
        2 * 24 + 80 + 84,
    ),
}  # fmt: skip


def replaced(tensor: Tensor, place: tuple[int, ...], value: float) -> Tensor:
    changed = tensor.clone()
    changed[place] = value
    return changed


LOGITS = soft_labels().logits
ROWS, PRESENT = class_logits().probabilities, class_logits().present
MEANS, COUNTS = prototypes().means, prototypes().counts
BAD: dict[str, tuple[Knowledge, str]] = {
    "NaN": (soft_labels(replaced(LOGITS, (1, 2), torch.nan)), "logits: expected finite values, found 1 "),
    "infinity": (soft_labels(replaced(LOGITS, (0, 0), -torch.inf)), "logits: expected finite values"),
    "too few rows": (soft_labels(LOGITS[:3]), r"logits: .*shape \(4, 3\), found .*\(3, 3\)"),
    "too few rows and ids": (soft_labels(LOGITS[:3], IDS[:3]), r"logits: .*shape \(4, 3\)"),
    "other classes": (soft_labels(torch.zeros(4, 4)), r"found .*\(4, 4\)"),
    "transposed": (soft_labels(torch.zeros(3, 4)), r"found .*\(3, 4\)"),
    "another rank": (soft_labels(torch.zeros(4, 3, 1)), r"found .*\(4, 3, 1\)"),
    "one row that would broadcast": (soft_labels(LOGITS[:1]), r"found .*\(1, 3\)"),
    "one column that would broadcast": (soft_labels(LOGITS[:, :1]), r"found .*\(4, 1\)"),
    "a scalar": (soft_labels(torch.tensor(1.0)), r"found .*\(\)"),
    "whole numbers": (soft_labels(torch.zeros(4, 3, dtype=torch.int64)), "logits: expected floating point"),
    "complex numbers": (soft_labels(torch.zeros(4, 3, dtype=torch.complex64)), "logits: expected floating point"),
    "ids permuted": (soft_labels(ids=IDS.flip(0)), "ids: expected the ids of the round's public subset"),
    "other ids": (soft_labels(ids=IDS + 1), "ids: expected the ids"),
    "ids as floats": (soft_labels(ids=IDS.double()), "ids: expected torch.int64"),
    "ids as int32": (soft_labels(ids=IDS.int()), "ids: expected torch.int64"),
    "ids twice nested": (soft_labels(ids=IDS[None]), "ids: expected torch.int64"),
    "rows that do not sum to one": (ClassLogits(ROWS * 1.01, PRESENT), "expected rows that are distributions"),
    "an absent class called present": (ClassLogits(ROWS, PRESENT | True), "expected rows that are distributions"),
    "a negative probability": (
        ClassLogits(replaced(replaced(ROWS, (0, 0), -0.5), (0, 1), 1.25), PRESENT),
        "expected rows that are distributions",
    ),
    "NaN for an absent class": (ClassLogits(replaced(ROWS, (1, 0), torch.nan), PRESENT), "finite"),
    "presence as numbers": (ClassLogits(ROWS, PRESENT.long()), "present: expected torch.bool"),
    "presence of too few": (ClassLogits(ROWS, PRESENT[:2]), r"present: .*\(3,\), found .*\(2,\)"),
    "class means that are not square": (ClassLogits(ROWS[:, :2], PRESENT), r"probabilities: .*\(3, 3\)"),
    "negative counts": (Prototypes(MEANS, COUNTS - 1), "counts: expected none below 0, found -1"),
    "counts as floats": (Prototypes(MEANS, COUNTS.float()), "counts: expected torch.int64"),
    "another feature width": (Prototypes(MEANS[:, :4], COUNTS), r"means: .*\(3, 5\), found .*\(3, 4\)"),
    "prototypes of too few classes": (Prototypes(MEANS[:2], COUNTS[:2]), r"means: .*\(3, 5\), found .*\(2, 5\)"),
    "an infinite prototype": (Prototypes(replaced(MEANS, (2, 2), torch.inf), COUNTS), "means: expected finite"),
    "features of too few samples": (Features(IDS[:2], torch.zeros(2, 5)), r"features: .*\(4, 5\), found .*\(2, 5\)"),
    "features without ids": (Features(IDS[:2], torch.zeros(4, 5)), r"ids: .*\(4,\), found .*\(2,\)"),
    "features of another width": (Features(IDS, torch.zeros(4, 6)), r"features: .*\(4, 5\), found .*\(4, 6\)"),
    "NaN in features": (Features(IDS, torch.full((4, 5), torch.nan)), "features: expected finite"),
    "features of permuted samples": (Features(IDS.flip(0), torch.zeros(4, 5)), "ids: expected the ids of the round's"),
    "weights without an entry": (Weights({"w": torch.ones(2, 2)}), r"weights: .*missing \['n'\]"),
    "weights with an extra entry": (Weights({**weights().tensors, "x": torch.ones(1)}), r"unexpected \['x'\]"),
    "no weights": (Weights({}), r"missing \['n', 'w'\]"),
    "weights of another shape": (Weights({**weights().tensors, "w": torch.ones(2, 3)}), r"w: .*found .*\(2, 3\)"),
    "weights of another type": (Weights({**weights().tensors, "w": torch.ones(2, 2).double()}), "w: .*float64"),
    "a counter as float": (Weights({**weights().tensors, "n": torch.tensor(7.0)}), "n: expected torch.int64"),
    "NaN in weights": (Weights({**weights().tensors, "w": torch.full((2, 2), torch.nan)}), "w: .*found 4 that"),
    "NaN in a generator": (Generator({"g": torch.tensor([0.0, torch.nan])}), "g: expected finite"),
    "NaN in a complex generator": (Generator({"g": torch.tensor([complex(0, torch.nan)])}), "g: expected finite"),
    "a bad part": (Bundle({"good": soft_labels(), "bad": soft_labels(LOGITS[:1])}), r"logits: .*\(4, 3\)"),
    "a bad part deep inside": (Bundle({"a": Bundle({"b": Generator({"g": torch.tensor(torch.nan)})})}), "g: .*finite"),
}


LABELS = np.array([2, 0, 2, 2, 0, 4])  # of five classes; 1 and 3 are absent


def class_means(values: NDArray[np.float64]) -> dict[int, object]:
    """Average values over the samples of each class that is there."""
    return {label: values[np.equal(LABELS, label)].mean(axis=0) for label in (0, 2, 4)}
