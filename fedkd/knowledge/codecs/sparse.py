"""Few numbers of each row, and where they stand."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError, expect
from fedkd.knowledge.base import Meaning
from fedkd.knowledge.codecs._bits import bits_for, pack, unpack
from fedkd.knowledge.codecs._pieces import as_distributions, form_of, read_form, rows_of
from fedkd.knowledge.codecs.base import Codec


@dataclass(frozen=True)
class TopK(Codec):
    """The ``k`` largest numbers of each row (of equals the first), and their places in ``ceil(log2 C)`` bits each.

    *Logits*: one number more per row, the logarithm of the mean of ``exp`` over what is left out, fills the rest: the
    kept logits are exact, the softmax of the kept classes too, and the rest of the mass is spread evenly. So it is with
    *probabilities*. *Rows* of other numbers: the largest in size are kept, the rest is 0.

    Attributes:
        k: numbers that are kept, at least 1; rows of ``k`` numbers or fewer pass untouched.
    """

    k: int

    name = "top-k"
    suits = ("logits", "probabilities", "rows")
    pieces = ("values", "places", "form")
    leaves = True

    def __post_init__(self) -> None:
        """Refuse to keep nothing."""
        if not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k: expected a whole number of 1 or more, found {self.k!r}")

    def encode(self, name: str, tensor: Tensor, meaning: Meaning) -> dict[str, Tensor] | None:
        """Return ``N k`` values (of logits ``N (k + 1)``), and places in ``ceil(N k ceil(log2 C) / 8)`` bytes."""
        rows, columns = rows_of(tensor.shape)
        if columns <= self.k:
            return None
        matrix = tensor.reshape(rows, columns)
        keys = matrix.abs() if meaning == "rows" else matrix
        order = keys.argsort(dim=1, descending=True, stable=True)
        places = order[:, : self.k]
        values = matrix.gather(1, places)
        if meaning == "logits":
            values = torch.cat([values, _log_mean_exp(matrix.gather(1, order[:, self.k :])).to(values.dtype)], dim=1)
        return {"values": values, "places": pack(places, bits_for(columns)), "form": form_of(tensor)}

    def decode(self, name: str, pieces: Mapping[str, Tensor], meaning: Meaning) -> Tensor:
        """Return full rows."""
        dtype, shape = read_form(name, pieces["form"])
        rows, columns = rows_of(shape)
        if columns <= self.k:
            raise KnowledgeError(f"{name}: form: expected rows of more than {self.k} numbers, found {columns}")
        expect(f"{name}: values", pieces["values"], (rows, self.k + (meaning == "logits")), dtype)
        places = unpack(f"{name}: places", pieces["places"], rows * self.k, bits_for(columns)).reshape(rows, self.k)
        in_order = places.sort(dim=1).values
        if (places >= columns).any() or (in_order[:, 1:] == in_order[:, :-1]).any():
            raise KnowledgeError(f"{name}: places: expected different ones below {columns} in every row, found others")
        values = pieces["values"].double()
        kept = values[:, : self.k]
        full = _rest(values, self.k, columns, meaning).expand(rows, columns).scatter(1, places, kept)
        return (as_distributions(full) if meaning == "probabilities" else full).reshape(shape).to(dtype)


def _rest(values: Tensor, k: int, columns: int, meaning: Meaning) -> Tensor:
    """Return what fills each row, shape ``(N, 1)``."""
    if meaning == "logits":
        return values[:, k:]
    if meaning == "probabilities":
        mass = values.sum(1, keepdim=True)
        return torch.where(mass > 0, (1 - mass).clamp(min=0) / (columns - k), torch.zeros_like(mass))
    return torch.zeros_like(values[:, :1])


def _log_mean_exp(rows: Tensor) -> Tensor:
    """Return the logarithm of the mean of ``exp`` over each row, float64, shape ``(N, 1)``."""
    largest = rows.double().amax(1, keepdim=True)
    return largest + (rows.double() - largest).exp().mean(1, keepdim=True).log()
