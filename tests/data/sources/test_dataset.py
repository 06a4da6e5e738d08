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
        (
            {"views": {"sound": torch.ones(3, 4)}, "rates": {"sound": 8.0}},
            r"expected the rate of a signal .*, found .* \(3, 4\); give one channel, as array\[:, None\], or remove",
        ),
        ({"rates": {"sound": 0.0}}, "rate of view 'sound': expected a number of Hz above 0, found 0.0"),
        ({"rates": {"sound": float("inf")}}, "rate of view 'sound': expected .* found inf"),
    ],
)
def test_data_that_does_not_fit_together_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"data set 'tiny': .*{message}") as caught:
        tiny(**change)
    assert "\n" not in str(caught.value)


# --- ids, and splits that the data set names itself

ODD = torch.tensor([3, 7, 20])


def test_rows_are_found_by_their_ids() -> None:
    data = tiny(given_ids=ODD)

    assert data.ids.tolist() == [3, 7, 20]
    assert data.rows(torch.tensor([20, 3, 20])).tolist() == [2, 0, 2]
    assert data.rows(torch.tensor([], dtype=torch.int64)).tolist() == []
    ids = torch.tensor([2, 0])
    assert tiny().rows(ids) is ids  # row numbers cost nothing


@pytest.mark.parametrize("strange", [4, 0, 21, -1])
def test_an_id_that_no_sample_has_is_refused(strange: int) -> None:
    with pytest.raises(UserError, match=f"expected ids of its 3 samples, found 1 others, such as {strange}"):
        tiny(given_ids=ODD).rows(torch.tensor([7, strange]))


def test_samples_that_are_taken_keep_their_ids_and_all_that_is_said_of_them() -> None:
    data = tiny(
        official_test=torch.tensor([False, False, True]),
        groups=torch.tensor([5, 6, 7]),
        views=NOTHING,
        present={"image": torch.tensor([True, False, False]), "sound": torch.tensor([False, True, True])},
        rates={"sound": 50.0},
        split=torch.tensor([1, 3, 1]),
    )

    both = data.take(torch.tensor([0, 2]))
    last = data.take(torch.tensor([1, 2]))

    assert both.ids.tolist() == [0, 2]
    assert both.take(torch.tensor([1])).ids.tolist() == [2]
    assert both.labels.tolist() == [0, 1]
    assert both.groups is not None
    assert both.groups.tolist() == [5, 7]
    assert both.split is not None
    assert both.split.tolist() == [1, 1]
    assert {name: there.tolist() for name, there in both.present.items()} == {
        "image": [True, False],
        "sound": [False, True],
    }
    assert (sorted(last.views), last.present, last.rates) == (["sound"], {}, {"sound": 50.0})  # none has an image


def test_ids_and_splits_are_part_of_the_digest() -> None:
    split = torch.tensor([0, 0, 0])
    digests = {tiny(**change).digest for change in ({}, {"given_ids": ODD}, {"split": split}, {"given_ids": ODD + 1})}
    assert len(digests) == 4


def test_only_public_samples_may_lack_a_label() -> None:
    labels = torch.tensor([0, -1, 1])
    assert tiny(labels=labels, split=torch.tensor([3, 1, 2])).labels.tolist() == [0, -1, 1]
    for change in ({}, {"split": torch.tensor([1, 3, 1])}, {"labels": torch.tensor([0, -2, 1]), "split": split_of(1)}):
        with pytest.raises(UserError, match=r"labels: expected class numbers 0 to 1, found -[12] to 1"):
            tiny(**{"labels": labels, **change})


def split_of(number: int) -> torch.Tensor:
    return torch.full((3,), number)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"given_ids": torch.tensor([3, 2, 4])}, "ids: expected ascending ones"),
        ({"given_ids": torch.tensor([3, 3, 4])}, "ids: expected ascending ones, none of them twice"),
        ({"given_ids": torch.tensor([-1, 3, 4])}, "ids: expected numbers from 0 on, found -1"),
        (
            {"given_ids": torch.tensor([1, 2])},
            r"ids: expected torch.int64 of shape \(3,\), found int64 of shape \(2,\)",
        ),
        ({"given_ids": torch.tensor([1.0, 2.0, 3.0])}, r"ids: expected torch.int64 of shape \(3,\), found float32"),
        ({"split": split_of(4)}, r"split: expected numbers 0 to 3 \(train, public, validation, test\)"),
        ({"split": torch.tensor([0])}, r"split: expected torch.int64 of shape \(3,\)"),
    ],
)
def test_wrong_ids_and_splits_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        tiny(**change)
