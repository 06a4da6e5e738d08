"""A data set: labelled samples in all their views, checked when it is made."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fedkd.errors import UserError

_SIGNAL_RANK = 3  # (N, channels, length)
SPLITS = ("train", "public", "validation", "test")
"""The splits that a data set may name itself, in the order of their numbers in ``DataSet.split``."""
UNLABELLED = -1
"""The label of a public sample that has none."""


@dataclass(frozen=True, eq=False)  # eq=False: tensors have no single truth value, so equality means identity
class DataSet:
    """Labelled samples in all their views.

    Attributes:
        name: short name, the same on every machine.
        views: one float32 tensor ``(N, ...)`` per view name: images ``(N, channels, height, width)`` in [0, 1],
            signals ``(N, channels, length)``, vectors ``(N, d)``.
        labels: class numbers, int64, shape ``(N,)``.
        classes: the ``C`` class names; label ``k`` means ``classes[k]``.
        official_test: rows that the publisher calls test, bool, shape ``(N,)``.
        groups: natural owner of each sample, such as a person, int64, shape ``(N,)``.
        present: which samples have a view, bool, shape ``(N,)``, by view name; a view without an entry is there for
            all samples. The rows of samples that lack a view are zeros.
        rates: sampling rate of signal views in Hz, by view name.
        given_ids: stable sample ids, int64, shape ``(N,)``, ascending, none of them twice; the row numbers without.
        split: the split of each sample, its number in ``SPLITS``, int64, shape ``(N,)``; without it the experiment
            draws the splits. A public sample may then have the label ``UNLABELLED``.

    Raises:
        UserError: rows are not aligned, a value is not finite, a label is outside the classes, a sample has no view at
            all, a row of a missing view is not zero, a rate is not that of a signal, or ids are not ascending.
    """

    name: str
    views: Mapping[str, Tensor]
    labels: Tensor
    classes: tuple[str, ...]
    official_test: Tensor | None = None
    groups: Tensor | None = None
    present: Mapping[str, Tensor] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    given_ids: Tensor | None = None
    split: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse data that no federation could be built from."""
        problem = next(_problems(self), None)
        if problem is not None:
            raise UserError(f"data set {self.name!r}: {problem}")

    def __len__(self) -> int:
        """Return the number of samples ``N``."""
        return len(self.labels)

    @property
    def ids(self) -> Tensor:
        """The stable sample ids, int64, shape ``(N,)``, ascending: ``0 ... N-1`` if none were given."""
        return torch.arange(len(self)) if self.given_ids is None else self.given_ids

    def rows(self, ids: Tensor) -> Tensor:
        """Return the row of each of these ids, int64, shape ``(M,)``; free of cost where the ids are the row numbers.

        Raises:
            UserError: there is no sample of one of them.
        """
        if self.given_ids is None:
            return ids
        rows = torch.searchsorted(self.given_ids, ids).clamp(max=len(self) - 1)
        strange = ids[self.given_ids[rows] != ids]
        if len(strange):
            found = f"found {len(strange)} others, such as {int(strange[0])}"
            raise UserError(f"data set {self.name!r}: expected ids of its {len(self)} samples, {found}.")
        return rows

    def take(self, rows: Tensor) -> "DataSet":
        """Return the samples of some rows, int64, shape ``(M,)``, ascending, under the ids that they have here.

        A view that none of them has is left out.
        """

        def some(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[rows]

        present = {name: there[rows] for name, there in self.present.items()}
        return replace(
            self,
            views={name: v[rows] for name, v in self.views.items() if name not in present or present[name].any()},
            labels=self.labels[rows],
            official_test=some(self.official_test),
            groups=some(self.groups),
            present={name: there for name, there in present.items() if there.any() and not there.all()},
            rates={name: rate for name, rate in self.rates.items() if name not in present or present[name].any()},
            given_ids=self.ids[rows],
            split=some(self.split),
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything in the data set, the same in every process that holds the same data."""
        columns = {"labels": self.labels, "official_test": self.official_test, "groups": self.groups}
        columns |= {"ids": self.given_ids, "split": self.split}
        columns |= {f"view {name}": self.views[name] for name in sorted(self.views)}
        columns |= {f"present {name}": self.present[name] for name in sorted(self.present)}
        tensors = {name: values for name, values in columns.items() if values is not None}
        # The header fixes where each tensor begins, so that no two different data sets hash the same bytes.
        header: list[object] = [
            self.name,
            self.classes,
            [(name, str(t.dtype), list(t.shape)) for name, t in tensors.items()],
        ]
        if self.rates:
            header.append([(name, float(self.rates[name])) for name in sorted(self.rates)])
        digest = hashlib.sha256(json.dumps(header).encode())
        for values in tensors.values():
            digest.update(values.contiguous().numpy().data)
        return digest.hexdigest()


def _problems(data: DataSet) -> Iterator[str]:
    """Yield what is wrong with a data set; labels first, since the rest is measured against them."""
    labels = data.labels
    if labels.dtype != torch.int64 or labels.ndim != 1:
        yield f"labels: expected int64 of shape (N,), found {_describe(labels)}; give one class number per sample."
    if not len(labels):
        yield "expected at least one sample, found none; check the files it was read from."
    yield from _column_problems(data)
    named = labels if data.split is None else labels[(data.split != SPLITS.index("public")) | (labels != UNLABELLED)]
    low, high = (int(named.min()), int(named.max())) if len(named) else (0, 0)
    if low < 0 or high >= len(data.classes):
        expected = f"expected class numbers 0 to {len(data.classes) - 1}"
        yield f"labels: {expected}, found {low} to {high}; correct the labels or the list of classes."
    if not data.views:
        yield "expected at least one view, found none; add an array with one row per sample."
    for name, values in data.views.items():
        yield from _view_problems(name, values, len(labels))
    for name, there in data.present.items():
        yield from _present_problems(name, there, data)
    lonely = _without_any_view(data)
    if lonely:
        yield f"present: expected every sample in one view or more, found {lonely} in none; leave these samples out."
    for name, rate in data.rates.items():
        yield from _rate_problems(name, rate, data.views)


def _column_problems(data: DataSet) -> Iterator[str]:
    for name, column, dtype in (
        ("official_test", data.official_test, torch.bool),
        ("groups", data.groups, torch.int64),
        ("ids", data.given_ids, torch.int64),
        ("split", data.split, torch.int64),
    ):
        if column is not None and (column.shape != data.labels.shape or column.dtype != dtype):
            expected = f"expected {dtype} of shape ({len(data)},)"
            yield f"{name}: {expected}, found {_describe(column)}; give one per sample."
    if data.given_ids is not None and not (data.given_ids.diff() > 0).all():
        yield "ids: expected ascending ones, none of them twice, found others; sort the samples by their ids."
    if data.given_ids is not None and int(data.given_ids[0]) < 0:
        yield f"ids: expected numbers from 0 on, found {int(data.given_ids[0])}; number the samples anew."
    if data.split is not None and not ((data.split >= 0) & (data.split < len(SPLITS))).all():
        yield f"split: expected numbers 0 to {len(SPLITS) - 1} ({', '.join(SPLITS)}), found others; correct them."


def _view_problems(name: str, values: Tensor, rows: int) -> Iterator[str]:
    if not name or "@" in name or "+" in name:
        yield f"view {name!r}: expected a name without '@' and '+', which join transforms and views; rename the view."
    if values.dtype != torch.float32 or values.ndim == 0 or len(values) != rows:
        yield f"view {name!r}: expected float32 with {rows} rows, one per label, found {_describe(values)}; convert it."
    elif not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values.reshape(rows, -1)).all(dim=1)).sum())
        yield f"view {name!r}: expected finite numbers, found NaN or infinity in {bad} of {rows} rows; clean these."


def _present_problems(name: str, there: Tensor, data: DataSet) -> Iterator[str]:
    if name not in data.views:
        yield f"present: expected names of views ({', '.join(data.views)}), found {name!r}; rename or remove it."
    elif there.dtype != torch.bool or there.shape != data.labels.shape:
        expected = f"expected torch.bool of shape ({len(data)},)"
        yield f"present of view {name!r}: {expected}, found {_describe(there)}; give one per sample."
    elif not there.any():
        yield f"present of view {name!r}: expected a sample that has it, found none; leave the view out."
    elif bad := int((data.views[name].reshape(len(data), -1).any(dim=1) & ~there).sum()):
        yield f"view {name!r}: expected zeros where it is missing, found other numbers in {bad} rows; set them to zero."


def _without_any_view(data: DataSet) -> int:
    """Return how many samples have no view at all."""
    everywhere = torch.ones(len(data), dtype=torch.bool)
    there = torch.stack([data.present.get(name, everywhere) for name in data.views])
    return int((~there.any(dim=0)).sum())


def _rate_problems(name: str, rate: float, views: Mapping[str, Tensor]) -> Iterator[str]:
    if name not in views:
        yield f"rates: expected names of views ({', '.join(views)}), found {name!r}; rename or remove it."
    elif views[name].ndim != _SIGNAL_RANK:
        expected = "expected the rate of a signal (N, channels, length)"
        found = f"found a view of shape {tuple(views[name].shape)}"
        yield f"rate of view {name!r}: {expected}, {found}; {signal_remedy(views[name].ndim, 'remove the rate')}."
    elif not (math.isfinite(rate) and rate > 0):
        yield f"rate of view {name!r}: expected a number of Hz above 0, found {rate}; correct it."


def signal_remedy(rank: int, otherwise: str) -> str:
    """Return what to do about a view ``(N, ...)`` of this rank that should be a signal."""
    one_axis_less = rank == _SIGNAL_RANK - 1
    return f"give one channel, as array[:, None], or {otherwise}" if one_axis_less else otherwise


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
