import pytest
import reporting

ROWS = [{"data": "a", "seed": 0, "x": 1.0}, {"data": "b", "seed": 0, "x": 5.0}, {"data": "a", "seed": 1, "x": 3.0}]


def test_rows_that_agree_come_together_in_their_order():
    assert reporting.grouped(ROWS, "data") == [[ROWS[0], ROWS[2]], [ROWS[1]]]


def test_mean_and_deviation_by_hand():
    assert reporting.spread([1, 2, 3], 1) == "2.0 ± 1.0"
    assert reporting.spread([1.25], 2) == "1.25"


def test_the_interval_of_a_mean_is_students():
    half = 4.302653 / 3**0.5  # the 97.5 % quantile of t with two degrees of freedom, from a printed table
    assert reporting.mean_interval([1, 2, 3]) == pytest.approx((2, 2 - half, 2 + half), abs=1e-5)
    assert reporting.interval([1, 2, 3], 1) == "+2.0 (-0.5 to +4.5)"
    assert reporting.interval([-0.5], 1) == "-0.5"


def test_a_table_in_markdown():
    assert reporting.markdown(ROWS[:1]) == "| data | seed | x |\n| --- | --- | --- |\n| a | 0 | 1 |\n"


def test_a_csv_file_holds_every_row(tmp_path):
    reporting.write_csv(tmp_path / "rows.csv", ROWS)
    assert (tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines() == [
        "data,seed,x",
        "a,0,1.0",
        "b,0,5.0",
        "a,1,3.0",
    ]


def test_jobs_give_their_rows_in_order():
    found = reporting.in_processes(lambda name, n: [{name: i} for i in range(n)], [("a", 2), ("b", 1)], workers=1)
    assert next(found) == [{"a": 0}, {"a": 1}]
    assert list(found) == [[{"b": 0}]]
