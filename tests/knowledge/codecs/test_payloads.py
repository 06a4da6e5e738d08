"""Every kind of payload through codecs, and bundles with a codec for each part that it suits."""

from collections.abc import Callable, Sequence

import pytest
import torch

from fedkd.knowledge import KINDS, Bundle, Contract, KnowledgeError, SoftLabels, Weights
from fedkd.knowledge.codecs import (
    BFloat16,
    ClassIndex,
    Codec,
    Distributions,
    Float16,
    LowRank,
    Quantize,
    QuantizeRows,
    TopK,
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


@pytest.mark.parametrize(
    ("codecs", "reason"),
    [
        ((LowRank(0.5), LowRank(0.9)), "expected one of a kind, found 'low-rank' after 'low-rank'; leave it out"),
        ((Float16(), Float16()), "found 'float16' after 'float16'"),
        ((Float16(), Quantize(8), BFloat16()), "found 'bfloat16' after 'float16'"),
        ((Quantize(8), QuantizeRows(8)), "found 'quantize-rows' after 'quantize'"),
        (Float16(), r"expected a sequence of codecs, found Float16; write \(Float16\(\),\)"),
        ("float16", "expected a sequence of codecs, found str; make them by codecs_named"),
        (["float16"], "expected a sequence of codecs, found list; make them by codecs_named"),
        (None, "expected a sequence of codecs, found NoneType"),
    ],
    ids=str,
)
def test_two_codecs_of_a_kind_and_what_is_no_sequence_are_refused(codecs: Sequence[Codec], reason: str) -> None:
    with pytest.raises(KnowledgeError, match=f"^codecs: {reason}" if reason[:5] != "found" else f"^codecs: .*{reason}"):
        encode_knowledge(codecs, LABELS)
    with pytest.raises(KnowledgeError, match=r"^codecs: expected"):
        decode_knowledge(codecs, "SoftLabels", LABELS.to_tensors())


def test_no_codecs_are_no_mistake() -> None:
    for none in ((), []):
        assert decode_knowledge(none, "SoftLabels", encode_knowledge(none, LABELS)).to_tensors().keys() == {
            "ids",
            "logits",
        }


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: TopK(2.5), "k"),  # type: ignore[arg-type]
        (lambda: Quantize(2.5), "bits"),  # type: ignore[arg-type]
        (lambda: Distributions("4"), "bits"),  # type: ignore[arg-type]
        (lambda: LowRank("0.5"), "energy"),  # type: ignore[arg-type]
    ],
)
def test_a_parameter_of_another_type_is_refused(make: Callable[[], Codec], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected .* found .*[45]"):
        make()


def test_a_payload_without_a_tensor_is_refused() -> None:
    with pytest.raises(KnowledgeError, match=r"^logits: expected a tensor, found None"):
        SoftLabels(IDS, None).check(CONTRACT)  # type: ignore[arg-type]
    with pytest.raises(KnowledgeError, match=r"^ids: expected a tensor, found list"):
        SoftLabels([0, 1], GOOD["SoftLabels"][0].logits).check(CONTRACT)  # type: ignore[arg-type]
