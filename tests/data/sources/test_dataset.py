"""A data set: digest and checks."""

import hashlib
import struct
from typing import Any

import pytest
import torch

from fedkd.data.sources import DataSet
from fedkd.errors import UserError

SOME = torch.tensor([True, False, True])
NOTHING = {"image": torch.zeros(3, 1, 2, 2), "sound": torch.zeros(3, 1, 5)}


def tiny(**changes: object) -> DataSet:
    """A valid data set of three samples, but for the changes."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "views": {"image": torch.zeros(3, 1, 2, 2), "sound": torch.ones(3, 1, 5)},
        "labels": torch.tensor([0, 1, 1]),
        "classes": ("no", "yes"),
        **changes,
    }
    return DataSet(**fields)


def test_ids_count_the_rows() -> None:
    assert tiny().ids.tolist() == [0, 1, 2]
    assert tiny().ids.dtype == torch.int64
    assert len(tiny()) == 3


def test_the_digest_depends_on_content_alone() -> None:
    turned = {"sound": torch.ones(3, 1, 5), "image": torch.zeros(3, 2, 1, 2).transpose(1, 2)}
    assert tiny().digest == tiny(views=turned).digest
    assert len(bytes.fromhex(tiny().digest)) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"classes": ("no", "maybe")},
        {"labels": torch.tensor([0, 1, 0])},
        {"views": {"image": torch.zeros(3, 1, 2, 2)}},
        {"views": {"image": torch.zeros(3, 1, 4, 1), "sound": torch.ones(3, 1, 5)}},
        {"views": {"image": torch.full((3, 1, 2, 2), 1e-30), "sound": torch.ones(3, 1, 5)}},
        {"official_test": torch.tensor([False, False, True])},
        {"groups": torch.tensor([0, 0, 0])},
        {"present": {"image": torch.tensor([True, True, False])}},
        {"present": {"image": torch.tensor([False, True, True])}, "rates": {}},
        {"rates": {"sound": 50.0}},
    ],
)
def test_any_change_of_content_changes_the_digest(change: dict[str, Any]) -> None:
    assert tiny(**change).digest != tiny().digest


def test_the_digest_is_a_plain_sha256_of_header_and_content() -> None:
    data = DataSet("one", {"x": torch.tensor([[0.5]])}, torch.tensor([0]), ("a",))
    header = b'["one", ["a"], [["labels", "torch.int64", [1]], ["view x", "torch.float32", [1, 1]]]]'
    content = struct.pack("<q", 0) + struct.pack("<f", 0.5)
    assert data.digest == hashlib.sha256(header + content).hexdigest()


def test_the_digest_covers_missing_views_and_rates() -> None:
    signals = {"x": torch.tensor([[[0.5]], [[0.0]]]), "y": torch.tensor([[[1.0]], [[2.0]]])}
    present, rates = {"x": torch.tensor([True, False])}, {"y": 8, "x": 50.0}
    data = DataSet("two", signals, torch.tensor([0, 0]), ("a",), present=present, rates=rates)
    header = (
        b'["two", ["a"], [["labels", "torch.int64", [2]], ["view x", "torch.float32", [2, 1, 1]], '
        b'["view y", "torch.float32", [2, 1, 1]], ["present x", "torch.bool", [2]]], [["x", 50.0], ["y", 8.0]]]'
    )
    content = struct.pack("<2q", 0, 0) + struct.pack("<4f", 0.5, 0, 1, 2) + b"\x01\x00"
    assert data.digest == hashlib.sha256(header + content).hexdigest()


def test_an_empty_statement_about_missing_views_and_rates_changes_no_digest() -> None:
    assert tiny(present={}, rates={}).digest == tiny().digest


def test_a_view_may_be_said_to_be_there_for_all() -> None:
    assert tiny(present={"sound": torch.ones(3, dtype=torch.bool)}).present["sound"].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 1])}, "view 'image': expected float32 with 2 rows.*found float32 of shape .3, 1"),
        ({"labels": torch.tensor([0, 1, 2])}, "expected class numbers 0 to 1, found 0 to 2"),
        ({"labels": torch.tensor([0, -1, 1])}, "found -1 to 1"),
        ({"labels": torch.zeros(3)}, "expected int64 of shape .N,., found float32"),
        ({"labels": torch.zeros(0, dtype=torch.int64)}, "expected at least one sample"),
        ({"views": {}}, "expected at least one view"),
        ({"views": {"image": torch.zeros(3, 2, dtype=torch.float64)}}, "expected float32 .* found float64"),
        ({"views": {"image@4": torch.zeros(3, 2)}}, "without '@'"),
        ({"views": {"image+audio": torch.zeros(3, 2)}}, r"'\+'"),
        ({"views": {"a": torch.tensor([[0.0], [torch.inf], [torch.nan]])}}, "NaN or infinity in 2 of 3 rows"),
        ({"official_test": torch.zeros(3)}, "official_test: expected torch.bool of shape .3,., found float32"),
        ({"groups": torch.zeros(4, dtype=torch.int64)}, "groups: expected .* found int64 of shape .4,."),
        ({"present": {"smell": SOME}}, r"present: expected names of views \(image, sound\), found 'smell'"),
        ({"present": {"image": torch.ones(3)}}, "present of view 'image': expected torch.bool of .* found float32"),
        ({"present": {"image": SOME[:2]}}, r"present of view 'image': .* found bool of shape \(2,\)"),
        ({"present": {"image": ~SOME & SOME}}, "present of view 'image': expected a sample that has it, found none"),
        ({"present": {"sound": SOME}}, "view 'sound': expected zeros where it is missing, found other numbers in 1 r"),
        ({"present": {"image": SOME, "sound": SOME}, "views": NOTHING}, "every sample in one view .* found 1 in none"),
        ({"rates": {"smell": 8.0}}, "rates: expected names of views .* found 'smell'"),
        ({"rates": {"image": 8.0}}, r"rate of view 'image': expected the rate of a signal .* \(3, 1, 2, 2\)"),
        ({"rates": {"sound": 0.0}}, "rate of view 'sound': expected a number of Hz above 0, found 0.0"),
        ({"rates": {"sound": float("inf")}}, "rate of view 'sound': expected .* found inf"),
    ],
)
def test_data_that_does_not_fit_together_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"data set 'tiny': .*{message}") as caught:
        tiny(**change)
    assert "\n" not in str(caught.value)
