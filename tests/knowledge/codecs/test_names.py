"""Codecs by name: every one can be made, and a wrong one is refused in one line that names the others."""

import pytest

from fedkd.errors import UserError
from fedkd.knowledge import Bundle, ClassLogits, Knowledge, SoftLabels, Weights
from fedkd.knowledge.codecs import CODECS, Float16, LowRank, TopK, codecs_named, expect_suited, payloads_suited


def test_codecs_are_made_in_the_order_given() -> None:
    assert codecs_named(["top-k:3", "float16", "low-rank:0.9"], "here") == (TopK(3), Float16(), LowRank(0.9))
    assert codecs_named([], "here") == ()


@pytest.mark.parametrize("name", CODECS)
def test_every_example_makes_the_codec_of_its_name(name: str) -> None:
    [codec] = codecs_named([CODECS[name].example], "here")
    assert codec.name == name
    assert CODECS[name].description


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("top-k", "expected a codec such as 'top-k:3', found 'top-k'"),
        ("top-k:", "found 'top-k:'"),
        ("top-k:x", "found 'top-k:x'"),
        ("top-k:0", r"found 'top-k:0' \(k: expected 1 or more, found 0\)"),
        ("quantize:9", r"\(bits: expected 1 to 8, found 9\)"),
        ("quantize:2.5", "found 'quantize:2.5'"),
        ("low-rank:nan", r"\(energy: expected a share above 0, at most 1, found nan\)"),
        ("float16:2", r"\(it takes no parameter\)"),
        ("flaot16", "unknown codec 'flaot16': did you mean 'float16'"),
        ("", "unknown codec ''"),
    ],
)
def test_a_wrong_codec_is_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"^up: .*{reason}") as caught:
        codecs_named([text], "up")
    assert len(str(caught.value).splitlines()) == 1
    assert all(entry.example in str(caught.value) for entry in CODECS.values())


@pytest.mark.parametrize(
    ("texts", "kinds", "reason"),
    [
        (["class-index"], [Weights], "'class-index' codes SoftLabels that .* but fedavg exchanges Weights; remove it"),
        (["top-k:3"], [Weights], "'top-k' codes ClassLogits, Features, Prototypes, SoftLabels"),
        (["low-rank:0.9"], [ClassLogits], "'low-rank' codes"),
        (["class-index", "float16"], [SoftLabels], "'float16' codes any payload that no codec before it has coded"),
        (["float16", "top-k:3"], [SoftLabels], "or move it to the front"),
    ],
)
def test_a_codec_with_nothing_to_code_is_refused(texts: list[str], kinds: list[type[Knowledge]], reason: str) -> None:
    with pytest.raises(UserError, match=f"^up: .*{reason}"):
        expect_suited(codecs_named(texts, "up"), kinds, "up", "fedavg")


@pytest.mark.parametrize(
    ("texts", "kinds"),
    [
        (["class-index", "float16"], [SoftLabels, Weights]),
        (["top-k:3", "quantize:4"], [SoftLabels]),
        (["low-rank:0.9", "float16"], [Weights]),
        (["class-index"], [Bundle]),
    ],
)
def test_what_has_something_to_code_passes(texts: list[str], kinds: list[type[Knowledge]]) -> None:
    expect_suited(codecs_named(texts, "up"), kinds, "up", "fedavg")


def test_payloads_are_named_for_people() -> None:
    assert payloads_suited("float16") == "any payload"
    assert payloads_suited("distributions") == "ClassLogits, SoftLabels"
