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
        ("top-k", r"expected a codec such as 'top-k:3', found 'top-k' \(a whole number is missing behind the colon\)"),
        ("top-k:", r"found 'top-k:' \(a whole number is missing behind the colon\)"),
        ("top-k:x", r"found 'top-k:x' \('x' is not a whole number\)"),
        ("top-k:0", r"found 'top-k:0' \(k: expected a whole number of 1 or more, found 0\)"),
        ("Top-K:3", "unknown codec 'Top-K': did you mean 'top-k:3'"),
        ("quantize:9", r"\(bits: expected a whole number from 1 to 8, found 9\)"),
        ("quantize:2.5", r"found 'quantize:2.5' \('2.5' is not a whole number\)"),
        ("low-rank:", r"\(a number is missing behind the colon\)"),
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
        (["class-index"], [Weights], "'class-index' codes SoftLabels, but fedavg exchanges Weights; leave it out"),
        (["top-k:3"], [Weights], "'top-k' codes ClassLogits, Features, Prototypes, SoftLabels"),
        (["low-rank:0.9"], [ClassLogits], "'low-rank' codes"),
        (
            ["class-index", "float16"],
            [SoftLabels],
            "nothing is left for 'float16', 'class-index' already codes it; leave it out",
        ),
        (
            ["float16", "top-k:3"],
            [SoftLabels],
            "nothing is left for 'top-k', 'float16' already codes it; put 'top-k' first",
        ),
        (["low-rank:0.5", "low-rank:0.5"], [Weights], "'low-rank' comes twice; leave the second out"),
        (["top-k:3", "top-k:2"], [SoftLabels], "'top-k' comes twice; leave the second out"),
        (["quantize:8", "quantize:8"], [Weights], "'quantize' comes twice; leave the second out"),
        (["float16", "quantize:8", "float16"], [Weights], "'float16' comes twice; leave the second out"),
        (
            ["float16", "bfloat16"],
            [Weights],
            "'bfloat16' comes after 'float16', which is of its kind; leave the second out",
        ),
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
