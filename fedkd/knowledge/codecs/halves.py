"""Two bytes per number."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError, expect
from fedkd.knowledge.base import Meaning
from fedkd.knowledge.codecs._pieces import as_distributions, form_of, read_form
from fedkd.knowledge.codecs.base import Codec


@dataclass(frozen=True)
class _Half(Codec):
    """Rounds to the nearest number of a two-byte type, ties to even; what is out of its range is refused."""

    dtype: ClassVar[torch.dtype]
    pieces = ("half", "form")
    leaves = True

    def encode(self, name: str, tensor: Tensor, meaning: Meaning) -> dict[str, Tensor]:
        """Return the rounded numbers, ``2 n`` bytes."""
        half = tensor.to(self.dtype)
        if not torch.isfinite(half).all():
            largest, found = torch.finfo(self.dtype).max, float(tensor.double().abs().max())
            raise KnowledgeError(
                f"{name}: {self.name}: expected numbers up to {largest:.6g} in size, found {found:.6g}"
            )
        return {"half": half, "form": form_of(tensor)}

    def decode(self, name: str, pieces: Mapping[str, Tensor], meaning: Meaning) -> Tensor:
        """Return the numbers in their own type; rows that were distributions are again."""
        dtype, shape = read_form(name, pieces["form"])
        expect(f"{name}: half", pieces["half"], shape, self.dtype)
        values = pieces["half"].double()
        return (as_distributions(values) if meaning == "probabilities" else values).to(dtype)


@dataclass(frozen=True)
class Float16(_Half):
    """IEEE half precision: ``|error| <= 2**-11 |x|`` for ``|x|`` from ``2**-14`` to 65504, and ``2**-25`` below."""

    name = "float16"
    dtype = torch.float16


@dataclass(frozen=True)
class BFloat16(_Half):
    """The upper half of float32: ``|error| <= 2**-8 |x|``, up to ``3.39e38``."""

    name = "bfloat16"
    dtype = torch.bfloat16
