"""Many clients' tensors as few arrays: what our Ray grid puts into shared memory.

To write and read a small array costs more than its bytes do, so rows with the same names, types and shapes, such as the
states of a cohort, are stacked name by name.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.app.state import contents

Layout = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Columns:
    """Rows of named tensors.

    Attributes:
        groups: of rows with one layout: their numbers, the layout, and for each name the memory of the stacked tensors.
    """

    groups: Sequence[tuple[Sequence[int], Layout, Sequence[NDArray[Any]]]]


def as_columns(rows: Sequence[Mapping[str, Tensor]]) -> Columns:
    """Return rows in a form that is shared without copies; tensors on a GPU are brought to the CPU."""
    grouped: defaultdict[Layout, list[int]] = defaultdict(list)
    for k, row in enumerate(rows):
        grouped[tuple((name, t.dtype, tuple(t.shape)) for name, t in row.items())].append(k)
    groups = []
    for layout, members in grouped.items():
        stacked = [torch.stack([rows[k][name].detach().cpu() for k in members]) for name, _, _ in layout]
        groups.append((members, layout, [contents(tensor) for tensor in stacked]))
    return Columns(groups)


def as_row(columns: Columns, row: int) -> dict[str, Tensor]:
    """Return one of the rows that :func:`as_columns` was given (see :func:`as_rows`)."""
    members, layout, arrays = next(group for group in columns.groups if row in group[0])
    place = list(members).index(row)
    one = [raw.reshape(len(members), -1)[place : place + 1] for raw in arrays]
    return as_rows(Columns([([0], layout, one)]))[0]


def as_rows(columns: Columns) -> list[dict[str, Tensor]]:
    """Return the rows that :func:`as_columns` was given, in shared memory: torch refuses to write to them."""
    rows: dict[int, dict[str, Tensor]] = {}
    with torch.inference_mode(), warnings.catch_warnings():  # the former is what makes torch refuse
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        for members, layout, arrays in columns.groups:
            split = [
                torch.from_numpy(raw).view(dtype).reshape(len(members), *shape).unbind()
                for (_, dtype, shape), raw in zip(layout, arrays, strict=True)
            ]
            names = [name for name, _, _ in layout]
            for k, tensors in zip(members, zip(*split, strict=True) if split else [()] * len(members), strict=True):
                rows[k] = dict(zip(names, tensors, strict=True))
    return [rows[k] for k in range(len(rows))]
