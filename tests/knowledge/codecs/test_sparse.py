"""Few numbers of each row: what is kept is exact, and the rest is as documented."""

import math

import numpy as np
import pytest
import torch

from fedkd.knowledge import KnowledgeError
from fedkd.knowledge.codecs import TopK, decode, encode, num_bytes

LOGITS = np.random.default_rng(0).normal(scale=2, size=(25, 12))


def through(k: int, values: torch.Tensor, meaning: str) -> np.ndarray:  # type: ignore[type-arg]
    meanings = {"x": meaning}
    coded = encode([TopK(k)], {"x": values}, meanings)  # type: ignore[arg-type]
    assert set(coded) != {"x"}, "it was not coded"
    return decode([TopK(k)], coded, meanings)["x"].numpy()  # type: ignore[arg-type]


def softmax(rows: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    powers = np.exp(rows - rows.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_logits_kept_are_exact_and_so_is_their_softmax() -> None:
    found, top = through(3, torch.from_numpy(LOGITS), "logits"), np.argsort(-LOGITS, axis=1)[:, :3]
    np.testing.assert_array_equal(np.take_along_axis(found, top, 1), np.take_along_axis(LOGITS, top, 1))
    exact, decoded = softmax(LOGITS), softmax(found)
    np.testing.assert_allclose(np.take_along_axis(decoded, top, 1), np.take_along_axis(exact, top, 1), rtol=1e-12)
    mask = np.ones_like(exact, dtype=bool)
    np.put_along_axis(mask, top, False, 1)
    rest = 1 - np.take_along_axis(exact, top, 1).sum(1)
    np.testing.assert_allclose(decoded[mask].reshape(25, 9), np.tile(rest[:, None] / 9, 9), rtol=1e-9)


def test_the_rest_of_the_mass_is_spread_evenly() -> None:
    rows = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1], [0.0] * 5, [0.0, 0.0, 1.0, 0.0, 0.0]], dtype=torch.float64).repeat(
        9, 1
    )
    found = through(2, rows, "probabilities")
    np.testing.assert_allclose(found[:3], [[0.5, 0.2, 0.1, 0.1, 0.1], [0.0] * 5, [0.0, 0.0, 1.0, 0.0, 0.0]], atol=1e-15)
    rows[0] = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0])
    np.testing.assert_allclose(through(2, rows, "probabilities")[0], [0.4, 0.3, 0.1, 0.1, 0.1], atol=1e-15)


def test_of_other_rows_the_largest_in_size_are_kept() -> None:
    rows = torch.tensor([[1.0, -9.0, 3.0, 0.5, -2.0, 0.0]]).repeat(12, 1)
    assert through(2, rows, "rows")[0].tolist() == [0.0, -9.0, 3.0, 0.0, 0.0, 0.0]


def test_of_equals_the_first_are_kept() -> None:
    rows = torch.tensor([[2.0, 7.0, 7.0, 7.0, 1.0, 1.0]]).repeat(12, 1)
    coded = encode([TopK(2)], {"x": rows}, {"x": "rows"})
    # Places 1 and 2 in three bits, lowest bit first: 100 010 100 010 ... are the bytes 81, 20 and 69.
    assert coded["x#top-k.places"].tolist() == [81, 20, 69] * 3
    assert through(2, rows, "rows")[0].tolist() == [0.0, 7.0, 7.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("meaning", "values"), [("logits", 4), ("probabilities", 3), ("rows", 3)])
def test_bytes_by_hand(meaning: str, values: int) -> None:
    rows = torch.from_numpy(softmax(LOGITS).astype(np.float32))
    coded = encode([TopK(3)], {"x": rows}, {"x": meaning})  # type: ignore[dict-item]
    assert num_bytes(coded) == 25 * values * 4 + math.ceil(25 * 3 * 4 / 8) + 12


def test_weights_and_short_rows_pass_untouched() -> None:
    rows = {"x": torch.randn(5, 3)}
    assert encode([TopK(1)], rows, {"x": "weights"}) == rows
    assert encode([TopK(3)], rows, {"x": "rows"}) == rows


@pytest.mark.parametrize(
    ("piece", "value", "reason"),
    [
        ("places", torch.tensor([255, 15], dtype=torch.uint8), "places: expected different ones below 6"),
        ("places", torch.zeros(2, dtype=torch.uint8), "places: expected different ones below 6"),
        ("places", torch.zeros(3, dtype=torch.uint8), "places: expected uint8 of shape"),
        ("values", torch.full((2, 2), torch.nan), "values: expected finite"),
        ("values", torch.zeros(2, 3), r"values: expected .*\(2, 2\), found .*\(2, 3\)"),
        ("values", torch.zeros(2, 2).double(), "values: expected torch.float32"),
        ("form", torch.tensor([1, 2, 2], dtype=torch.int32), "form: expected rows of more than 2 numbers, found 2"),
    ],
)
def test_damage_is_refused(piece: str, value: torch.Tensor, reason: str) -> None:
    coded = {
        "x#top-k.values": torch.ones(2, 2),
        "x#top-k.places": torch.tensor([136, 6], dtype=torch.uint8),  # 0 1 2 3 in three bits
        "x#top-k.form": torch.tensor([1, 2, 6], dtype=torch.int32),
    }
    assert decode([TopK(2)], coded, {"x": "rows"})["x"].tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]
    with pytest.raises(KnowledgeError, match=reason):
        decode([TopK(2)], {**coded, f"x#top-k.{piece}": value}, {"x": "rows"})


def test_keeping_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="k: expected a whole number of 1 or more, found 0"):
        TopK(0)
