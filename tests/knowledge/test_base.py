"""Every payload: nothing lost on the way, every byte counted, every bad one refused with a reason."""

import pytest
import torch
from torch import Tensor

from fedkd.knowledge import (
    KINDS,
    Bundle,
    ClassLogits,
    Features,
    Knowledge,
    KnowledgeError,
    Prototypes,
    SoftLabels,
    kind,
)
from tests.knowledge.examples import BAD, CONTRACT, GOOD, IDS, LOGITS, PRESENT

every_kind = pytest.mark.parametrize("name", GOOD)


def assert_same(found: Knowledge, expected: Knowledge) -> None:
    assert type(found) is type(expected)
    ours, theirs = found.to_tensors(), expected.to_tensors()
    assert list(ours) == list(theirs)
    for field, tensor in theirs.items():
        assert torch.equal(ours[field], tensor)
        assert ours[field].dtype == tensor.dtype


def test_every_kind_is_tested() -> None:
    assert set(GOOD) == set(KINDS)
    assert all(kind(name) is type(payload) for name, (payload, _) in GOOD.items())


@every_kind
def test_the_flat_form_gives_the_payload_back(name: str) -> None:
    payload, _ = GOOD[name]
    flat = payload.to_tensors()
    assert all(isinstance(tensor, Tensor) for tensor in flat.values())
    assert_same(kind(name).from_tensors(flat), payload)


@every_kind
def test_bytes_are_those_of_all_tensors(name: str) -> None:
    payload, expected = GOOD[name]
    assert payload.num_bytes == expected


@every_kind
def test_an_honest_payload_passes(name: str) -> None:
    payload, _ = GOOD[name]
    payload.check(CONTRACT)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_payload_is_refused_with_a_reason(case: str) -> None:
    payload, reason = BAD[case]
    with pytest.raises(KnowledgeError, match=reason):
        payload.check(CONTRACT)


@pytest.mark.parametrize(
    ("cls", "change", "reason"),
    [
        (SoftLabels, {"ids": None}, r"SoftLabels: .*missing \['ids'\], unexpected \[\]"),
        (SoftLabels, {"labels": IDS}, r"SoftLabels: .*unexpected \['labels'\]"),
        (ClassLogits, {"present": None, "there": PRESENT}, r"missing \['present'\], unexpected \['there'\]"),
        (Prototypes, {"counts": None}, r"Prototypes: .*missing \['counts'\]"),
        (Features, {"logits": LOGITS}, r"Features: .*unexpected \['logits'\]"),
        (Bundle, {"first": IDS}, r"<name>:<kind>/<field>', found 'first'"),
        (Bundle, {"first:Weights": IDS}, r"<name>:<kind>/<field>', found 'first:Weights'"),
        (Bundle, {"a:b:Weights/w": IDS}, r"<name>:<kind>/<field>', found 'a:b:Weights/w'"),
        (Bundle, {"a:Zebra/w": IDS}, "kind: expected one of .*, SoftLabels, .*, found 'Zebra'"),
        (Bundle, {"a:SoftLabels/ids": IDS}, r"SoftLabels: .*missing \['logits'\]"),
        (Bundle, {"first:Generator/w": IDS}, "expected one payload of each name"),
    ],
)
def test_a_flat_form_with_wrong_fields_is_refused(
    cls: type[Knowledge], change: dict[str, Tensor | None], reason: str
) -> None:
    fields = {**GOOD[cls.__name__][0].to_tensors(), **change}
    with pytest.raises(KnowledgeError, match=reason):
        cls.from_tensors({name: tensor for name, tensor in fields.items() if tensor is not None})


@pytest.mark.parametrize("name", ["", "softlabels", "Knowledge", "_Fields", "Contract"])
def test_an_unknown_kind_is_refused(name: str) -> None:
    with pytest.raises(KnowledgeError, match=f"kind: expected one of .*, SoftLabels, .*, found '{name}'"):
        kind(name)
