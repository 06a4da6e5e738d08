"""Only the rows that have changed since both sides last held the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedkd.knowledge._checks import KnowledgeError, expect
from fedkd.knowledge.base import Meaning
from fedkd.knowledge.codecs._bits import pack, unpack
from fedkd.knowledge.codecs.base import Codec, decode, encode


@dataclass(frozen=True)
class Delta(Codec):
    """Rows that are not, bit for bit, those of a reference, and a mask of one bit per row. Lossless.

    It stands first; what follows codes the changed rows. To send codes of which few change (CFD), compare what they
    stand for: ``encode((Delta(old), ClassIndex()), settled((ClassIndex(),), new, meanings), meanings)``, where ``old``
    is what was settled last. That is exact with codecs that code every row by itself and give a row that they have
    decoded back as it is: ``class-index``, ``distributions``, ``quantize-rows``, ``top-k``; on logits and features also
    ``float16`` and ``bfloat16``.

    Attributes:
        reference: the tensors that both sides hold, by name; a tensor without one of its layout travels as it is.
    """

    reference: Mapping[str, Tensor] = field(compare=False)

    name = "delta"
    pieces = ("rows", "changed")
    leaves = True

    def encode(self, name: str, tensor: Tensor, meaning: Meaning) -> dict[str, Tensor] | None:
        """Return the changed rows, and the mask in ``ceil(N / 8)`` bytes."""
        old = self.reference.get(name)
        if old is None or not tensor.ndim or old.shape != tensor.shape or old.dtype != tensor.dtype:
            return None
        changed = (_bits_of(tensor) != _bits_of(old.detach().cpu())).any(1)
        return {"rows": tensor[changed], "changed": pack(changed, 1)}

    def decode(self, name: str, pieces: Mapping[str, Tensor], meaning: Meaning) -> Tensor:
        """Return the reference with the changed rows in place."""
        old = self.reference.get(name)
        if old is None or not old.ndim:
            raise KnowledgeError(
                f"{name}: expected the tensor itself, for there is none to compare with, found changes"
            )
        changed = unpack(f"{name}: changed", pieces["changed"], len(old), 1).bool()
        expect(f"{name}: rows", pieces["rows"], (int(changed.sum()), *old.shape[1:]), old.dtype)
        found = old.detach().cpu().clone()
        found[changed] = pieces["rows"]
        return found


def settled(
    codecs: tuple[Codec, ...], tensors: Mapping[str, Tensor], meanings: Mapping[str, Meaning]
) -> dict[str, Tensor]:
    """Return what the receiver of coded tensors will hold."""
    return decode(codecs, encode(codecs, tensors, meanings), meanings)


def _bits_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(len(tensor), -1).view(torch.uint8)
