"""The list of formulas: it holds everything, and says of each what it has to say."""

import inspect

import pytest

from fedkd import calibration, ensemble, losses
from fedkd.formulas import FAMILIES, formulas, to_markdown

ROWS = {row["name"]: row for row in formulas()}


def public_functions(package):
    return [
        value for value in vars(package).values() if inspect.isfunction(value) and value is not losses.values_unchecked
    ]


@pytest.mark.parametrize("package", [losses, ensemble, calibration], ids=lambda package: package.__name__)
def test_every_public_function_is_listed_with_formula_and_source(package):
    for function in public_functions(package):
        row = ROWS[function.__name__]
        assert f"fedkd.{row['family']}" == function.__module__
        assert row["formula"].startswith(("`", "kernel: `", "code: `", "paper: `", "mean: `", "for each", "twice"))
        assert row["source"].endswith(".")


def test_every_loss_says_what_other_code_computes():
    for function in public_functions(losses):
        assert ROWS[function.__name__]["elsewhere"].endswith("."), function.__name__


def test_families_come_in_their_order_and_all_are_there():
    found = [row["family"] for row in formulas()]
    assert list(dict.fromkeys(found)) == list(FAMILIES)


def test_a_row_is_what_the_docstring_says():
    row = ROWS["similarity_preserving"]
    assert row["signature"] == "similarity_preserving(student, teacher)"
    assert row["formula"] == "`1 / N^2 * sum_ij (g_ij - g'_ij)^2` with rows `g_i = G_i / |G_i|_2` of `G = X X^T`."
    assert row["source"] == "Tung & Mori 2019 (arXiv:1907.09682), eq. 2 to 4."
    assert row["elsewhere"].startswith("RepDistiller and mdistiller agree; torchdistill")
    assert ROWS["exp_guard"]["signature"] == "exp_guard(logits, scores, *, eta, centre=geometric_median)"
    assert ROWS["listnet"]["signature"] == "listnet(student, teacher, *, temperature=1.0)"


def test_docstrings_become_markdown():
    text = to_markdown(formulas())
    assert "``" not in text
    assert ":func:" not in text
    entry = text[text.index("### mutual\n") : text.index("### ramp_up\n")].strip().split("\n")
    assert entry[2] == "`mutual(own, peers_logits, *, peers='mean')`  "
    assert entry[5].startswith("- Formula: `1 / (K N) * sum_kn KL(p_k || p)`")
    assert entry[6].startswith("- Source: Zhang et al. 2018")
    assert entry[7].startswith("- Elsewhere: The authors' code sums over the peers")
