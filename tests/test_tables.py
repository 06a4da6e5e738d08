from io import StringIO

from rich.console import Console

from fedkd.compare import Comparison
from fedkd.listings import listing
from fedkd.tables import comparison_table, listing_table, mean_gains_table, outside_line, run_table

SCORES = {"accuracy": 0.5, "accuracy_worst10": 0.25, "nll": 1.5, "ece": 0.125, "brier": 0.75, "entropy": 2.0}
SUMMARY = {
    "strategy": "fedmd",
    "seed": 3,
    "rounds": 5,
    "digest": "0",
    "metrics": {"clients_global": SCORES, "clients_local": None, "ensemble_global": None, "server_global": None},
    "bytes_up": 1_500_000,
    "bytes_down": 250_000,
    "seconds": 12.34,
}


def _text(table: object) -> str:
    console = Console(file=StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()


def _row(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"│ {start} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_final_table_shows_scores_in_their_units_and_a_dash_where_there_is_no_model():
    text = _text(run_table(SUMMARY))
    assert _row(text, "clients") == ["clients", "50.0", "25.0", "1.500", "12.5", "0.750", "2.000"]
    assert _row(text, "server")[1:] == ["–"] * 6
    assert "1.50 MB up, 0.25 MB down" in text


def test_a_line_names_who_took_no_part():
    assert outside_line(SUMMARY) == ""
    outside = {**SUMMARY, "took_no_part": ["node 7: no data.", "1 more of 3 clients"]}
    assert outside_line(outside) == "took no part: node 7: no data; 1 more of 3 clients"


def test_a_score_that_is_no_number_is_a_dash():
    broken = {**SUMMARY, "metrics": {**SUMMARY["metrics"], "clients_global": {**SCORES, "nll": None}}}
    assert _row(_text(run_table(broken)), "clients")[3] == "–"


def test_the_comparison_shows_mean_and_sample_standard_deviation():
    run = {"strategy": "fedmd", "bytes_up": 2_000_000, "bytes_down": 0, "seconds": 1.0}
    runs = [{**run, "seed": 0, "clients_global.accuracy": 0.5}, {**run, "seed": 1, "clients_global.accuracy": 0.7}]
    row = _row(_text(comparison_table(Comparison(runs))), "fedmd")
    assert row[1] == "60.0 ± 14.1"  # sd of two values = |difference| / sqrt(2)
    assert row[2:5] == ["–", "–", "–"]
    assert row[5:7] == ["2.00", "0.00"]


def test_the_comparison_says_where_not_all_clients_took_part():
    run = {"bytes_up": 0, "bytes_down": 0, "seconds": 1.0, "seed": 0}
    runs = [{**run, "strategy": name, "took_no_part": text} for name, text in (("fedmd", ""), ("fd", "node 1: x"))]
    assert "not all clients took part: fd (see runs.csv)" in _text(comparison_table(Comparison(runs)))
    assert "not all" not in _text(comparison_table(Comparison(runs[:1])))


def test_the_gains_over_seeds_show_clients_and_what_they_lack():
    means = {"clients": 3, "missing": 12.25, "alone": 0.5, "together": 0.53, "gain": 0.03, "low": 0.01, "high": 0.05}
    row = _row(_text(mean_gains_table([{"strategy": "s", "view": "x", "seeds": 4, **means}])), "s")
    assert row == ["s", "x", "3", "12.2", "50.0", "53.0", "+3.0", "+1.0 to +5.0"]


def test_a_listing_shows_every_row():
    text = _text(listing_table("strategies", listing("strategies")))
    assert "1910.03581" in text
    assert "fedproto" in text


def test_brackets_in_a_listing_are_no_markup():
    rows = [{"family": "f", "name": "n", "formula": "`sum [student > u]` of [bold]"}]
    assert "sum [student > u] of [bold]" in _text(listing_table("losses", rows))
