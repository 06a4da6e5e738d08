"""Every kind of payload through codecs, and bundles with a codec for each part that it suits."""

from collections.abc import Sequence

import pytest
import torch

from fedkd.knowledge import KINDS, Bundle, Contract, KnowledgeError, SoftLabels, Weights
from fedkd.knowledge.codecs import (
    ClassIndex,
    Codec,
    Float16,
    Quantize,
    decode_knowledge,
    encode_knowledge,
    meanings_of,
    num_bytes,
)
from tests.knowledge.examples import CONTRACT, GOOD

IDS = torch.arange(64)
LABELS = SoftLabels(IDS, torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))
NET = Weights({"a/b:c": torch.ones(30, 30), "n": torch.tensor(7)})


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("codecs", [(), (Float16(),), (Quantize(8), Float16()), (ClassIndex(),)], ids=str)
def test_every_kind_is_still_accepted(name: str, codecs: Sequence[Codec]) -> None:
    payload, _ = GOOD[name]
    coded = encode_knowledge(codecs, payload)
    found = decode_knowledge(codecs, name, coded)
    assert type(found) is KINDS[name]
    found.check(CONTRACT)
    assert num_bytes(coded) <= payload.num_bytes


def test_meanings_are_those_of_the_parts_of_a_bundle() -> None:
    bundle = Bundle({"up": LABELS, "net": Bundle({"g": NET})})
    assert meanings_of("Bundle", bundle.to_tensors()) == {
        "up:SoftLabels/ids": "logits",
        "up:SoftLabels/logits": "logits",
        "net:Bundle/g:Weights/a/b:c": "weights",
        "net:Bundle/g:Weights/n": "weights",
    }


def test_a_part_that_a_codec_does_not_suit_passes_untouched() -> None:
    bundle = Bundle({"up": LABELS, "net": Bundle({"g": NET})})
    coded = encode_knowledge((ClassIndex(),), bundle)
    assert num_bytes(coded) == (64 * 8 + 64 * 2 / 8 + 12) + NET.num_bytes
    found = decode_knowledge((ClassIndex(),), "Bundle", coded)
    assert isinstance(found, Bundle)
    found.parts["up"].check(Contract(3, 5, IDS, {}))
    assert torch.equal(found.parts["net"].to_tensors()["g:Weights/a/b:c"], NET.tensors["a/b:c"])


def test_an_unknown_kind_and_foreign_pieces_are_refused() -> None:
    with pytest.raises(KnowledgeError, match="found 'Zebra'"):
        decode_knowledge((Float16(),), "Zebra", {})
    coded = encode_knowledge((ClassIndex(),), LABELS)
    with pytest.raises(KnowledgeError, match=r"expected pieces of \['float16'\], found others"):
        decode_knowledge((Float16(),), "SoftLabels", coded)
    with pytest.raises(KnowledgeError, match="SoftLabels: expected the fields"):
        decode_knowledge((), "SoftLabels", coded)
