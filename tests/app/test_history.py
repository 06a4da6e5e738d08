"""What a run leaves, as plain records: JSON, and nothing that JSON has no word for."""

import json
import math
from dataclasses import replace

import pytest

from fedkd.app.history import ClientRecord, RoundRecord, plain, summarise_run


def a_round(number: int, up: dict[str, int], down: dict[str, int], accuracy: float = 0.5) -> RoundRecord:
    metrics = {"clients_global": {"accuracy": accuracy, "nll": math.nan}, "ensemble_global": None}
    return RoundRecord(number, 1.5, {"a": 3, "b": 0}, {"c": "why"}, up, down, f"digest-{number}", metrics)


def test_a_round_is_one_json_object() -> None:
    record = a_round(1, {"SoftLabels": 7}, {})

    text = json.dumps(record.to_json(), allow_nan=False)

    assert json.loads(text) == {
        "round": 1,
        "seconds": 1.5,
        "participants": {"a": 3, "b": 0},
        "failed": {"c": "why"},
        "bytes_up": {"SoftLabels": 7},
        "bytes_down": {},
        "digest": "digest-1",
        "metrics": {"clients_global": {"accuracy": 0.5, "nll": None}, "ensemble_global": None},
        "unmeasured": {},
        "refused": {},
    }
    assert RoundRecord(**json.loads(text)).to_json() == record.to_json()


def test_only_a_round_in_which_a_client_began_anew_says_so() -> None:
    record = replace(a_round(1, {}, {}), afresh=("a",))
    assert "afresh" not in a_round(1, {}, {}).to_json()
    assert record.to_json()["afresh"] == ["a"]


def test_only_a_round_in_which_outputs_were_sent_says_how_large_they_were() -> None:
    record = replace(a_round(1, {}, {}), bytes_measured=8)
    assert "bytes_measured" not in a_round(1, {}, {}).to_json()
    assert record.to_json()["bytes_measured"] == 8
    assert RoundRecord(**record.to_json()).bytes_measured == 8
    assert RoundRecord(**record.to_json()).to_json() == record.to_json()


def test_a_round_that_was_not_evaluated_says_so() -> None:
    assert RoundRecord(1, 0.0, {}, {}, {}, {}, "").to_json()["metrics"] is None


def test_a_client_is_one_json_object() -> None:
    record = ClientRecord("a", "mlp", "image", 3, {"image": 4}, (1, 2), {"nll": math.inf}, None)

    assert json.loads(json.dumps(record.to_json(), allow_nan=False)) == {
        "client": "a",
        "architecture": "mlp",
        "view": "image",
        "num_samples": 3,
        "missing": {"image": 4},
        "label_counts": [1, 2],
        "global": {"nll": None},
        "local": None,
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (-math.inf, None),
        (0.1, 0.1),
        (True, True),
        (2**70, 2**70),
        ("nan", "nan"),
        (None, None),
        ({"a": (1, math.nan, [math.inf, {"b": math.nan}])}, {"a": [1, None, [None, {"b": None}]]}),
    ],
)
def test_numbers_without_a_word_in_json_become_none(value: object, expected: object) -> None:
    found = plain(value)

    assert found == expected
    assert type(found) is type(expected)
    json.dumps(found, allow_nan=False)


def test_the_summary_takes_the_last_rounds_metrics_and_all_rounds_bytes() -> None:
    records = [a_round(1, {"SoftLabels": 7, "Weights": 1}, {}, 0.9), a_round(2, {"SoftLabels": 5}, {"Weights": 3}, 0.4)]
    records = [replace(record, bytes_measured=record.round * 100) for record in records]

    assert summarise_run("fedmd", 3, records, 2.00049) == {
        "strategy": "fedmd",
        "seed": 3,
        "rounds": 2,
        "digest": "digest-2",
        "metrics": {"clients_global": {"accuracy": 0.4, "nll": None}, "ensemble_global": None},
        "bytes_up": 13,
        "bytes_down": 3,
        "bytes_measured": 300,
        "seconds": 2.0,
    }


@pytest.mark.parametrize("local", [None, {"accuracy": 0.1 + 0.2, "nll": 1e-300}])
def test_a_clients_record_survives_json(local: dict[str, float] | None) -> None:
    record = ClientRecord("a", "mlp", "image@4", 3, {}, [1, 2], {"accuracy": 1 / 3}, local)

    assert ClientRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
