"""Rows of tensors as columns, and back."""

import pickle

import pytest
import torch
from torch import Tensor

from fedkd.app.state import digest
from fedkd.engine.columns import as_columns, as_row, as_rows

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]


def row(seed: int, *shape: int) -> dict[str, Tensor]:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return {str(dtype): (10 * values).to(dtype) for dtype in DTYPES} | {"scalar": torch.tensor(seed)}


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{}],
        [row(1, 2, 3)],
        [row(k, 4) for k in range(5)],
        [row(1, 2), {}, row(2, 3), {"other": torch.ones(2)}, row(3, 2), {}],
        [{"empty": torch.zeros(0, 3)}, {"empty": torch.zeros(0, 3)}],
        [{"b": torch.ones(1), "a": torch.zeros(1)}, {"a": torch.ones(1), "b": torch.zeros(1)}],
    ],
    ids=["none", "one empty", "one", "alike", "mixed", "no entries", "other order"],
)
def test_rows_come_back_as_they_were(rows: list[dict[str, Tensor]]) -> None:
    found = as_rows(pickle.loads(pickle.dumps(as_columns(rows), protocol=5)))  # noqa: S301 - our own bytes
    assert [list(one) for one in found] == [list(one) for one in rows]
    assert [digest(one) for one in found] == [digest(one) for one in rows]
    assert all(ours.shape == rows[k][name].shape for k, one in enumerate(found) for name, ours in one.items())
    single = [as_row(as_columns(rows), k) for k in range(len(rows))]
    assert [list(one) for one in single] == [list(one) for one in rows]
    assert [digest(one) for one in single] == [digest(one) for one in rows]


def test_equal_rows_are_few_arrays() -> None:
    columns = as_columns([row(k, 4) for k in range(50)])
    assert sum(len(arrays) for _, _, arrays in columns.groups) == len(DTYPES) + 1


def test_what_comes_back_cannot_be_written_to() -> None:
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        as_rows(as_columns([{"x": torch.ones(2)}]))[0]["x"].add_(1)


def test_gradients_and_strides_do_not_travel() -> None:
    tensors = {"x": torch.ones(2, 3, requires_grad=True).t()}
    (found,) = as_rows(as_columns([tensors]))
    assert found["x"].is_contiguous()
    assert not found["x"].requires_grad
    assert torch.equal(found["x"], tensors["x"])
