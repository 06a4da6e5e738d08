"""The report: complete, self-contained, escaped and the same bytes every time."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedkd.errors import UserError
from fedkd.report import write_report

_NASTY = '<script>alert("1 & 2")</script> $\\no_formula$'


def metrics(accuracy: float) -> dict[str, float]:
    return {
        "accuracy": accuracy,
        "accuracy_worst10": accuracy / 2,
        "nll": 2 - accuracy,
        "ece": 0.2 * accuracy,
        "brier": 1 - accuracy,
        "entropy": 1.5,
    }


def evaluation(accuracy: float) -> dict[str, Any]:
    return {
        "clients_global": metrics(accuracy),
        "clients_local": metrics(accuracy + 0.1),
        "ensemble_global": metrics(accuracy + 0.05),
        "server_global": None,
    }


def one_round(number: int) -> dict[str, Any]:
    return {
        "round": number,
        "seconds": 1.5,
        "participants": {"c0": 3, "c1": 4},
        "failed": {"c1": "boom $x$"} if number == 2 else {},
        "bytes_up": {"SoftLabels": 4000, "Prototypes": 900},
        "bytes_down": {"SoftLabels": 8000},
        "digest": "0123456789abcdef",
        "metrics": evaluation(0.2 + 0.1 * number) if number % 2 else None,
    }


def client(name: str) -> dict[str, Any]:
    return {
        "client": name,
        "architecture": "cnn",
        "view": "image@16",
        "num_samples": 10,
        "missing": {"image@16": 4},
        "label_counts": [7, 3, 0],
        "global": metrics(0.5),
        "local": None,
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Return the folder of a run of three rounds with two clients, without a server's student."""
    folder = tmp_path / "digits-fedmd"
    folder.mkdir()
    summary = {
        "strategy": "fedmd",
        "seed": 7,
        "rounds": 3,
        "digest": "feedbeef",
        "metrics": evaluation(0.5),
        "bytes_up": 14_700,
        "bytes_down": 24_000,
        "seconds": 125.0,
    }
    (folder / "experiment.toml").write_text('[strategy]\nname = "fedmd"\n', encoding="utf-8")
    (folder / "manifest.json").write_text(
        json.dumps({"torch": "2.15.0", "plan": {"c0": "one-by-one"}}), encoding="utf-8"
    )
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    write_rows(folder / "rounds.jsonl", [one_round(number) for number in (1, 2, 3)])
    write_rows(folder / "clients.jsonl", [client("c0"), client("c1")])
    return folder


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


class _Checker(HTMLParser):
    """Collects ids and the tags that would load or run something, and sees to it that every tag is closed."""

    _VOID = {"meta", "path", "use", "image", "rect", "br"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [values[name] or "" for name in ("src", "href", "xlink:href") if name in values]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> _Checker:
    checker = _Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_shows_the_run(run_dir: Path) -> None:
    page = page_of(run_dir)
    for text in ("digits-fedmd", "fedmd", "seed 7", "50.0 %", "25.0 %", "55.0 %", "14.7 kB", "24 kB", "2 min 5 s"):
        assert text in page
    for text in ("image@16", "boom $x$", "one-by-one", "feedbeef", "SoftLabels", "Prototypes", "clients, worst tenth"):
        assert text in page
    assert page.count("<svg ") == 5


def test_what_was_not_measured_is_not_shown(run_dir: Path) -> None:
    assert "server&#39;s student" not in page_of(run_dir).lower()


def test_the_page_needs_nothing_but_itself(run_dir: Path) -> None:
    checker = checked(page_of(run_dir))
    assert not checker.tags & {"script", "link", "iframe", "object", "embed"}
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in checker.links)
    assert len(checker.ids) == len(set(checker.ids))
    assert {link[1:] for link in checker.links if link.startswith("#")} <= set(checker.ids)


def test_references_in_plots_lead_somewhere(run_dir: Path) -> None:
    page = page_of(run_dir)
    references = set(re.findall(r"url\(#([^)]+)\)", page))
    assert references
    assert references <= set(checked(page).ids)


def test_the_same_files_give_the_same_bytes(run_dir: Path) -> None:
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first
    assert sorted(path.suffix for path in run_dir.iterdir()) == [".html", ".json", ".json", ".jsonl", ".jsonl", ".toml"]


def test_everything_is_escaped(run_dir: Path) -> None:
    write_rows(run_dir / "clients.jsonl", [{**client(_NASTY), "architecture": _NASTY, "view": _NASTY}])
    kinds = {"bytes_up": {_NASTY: 1}, "bytes_down": {}, "digest": _NASTY, "failed": {_NASTY: _NASTY}}
    write_rows(run_dir / "rounds.jsonl", [{**one_round(1), **kinds}])
    (run_dir / "experiment.toml").write_text(f"# {_NASTY}\n", encoding="utf-8")
    (run_dir / "manifest.json").write_text(json.dumps({_NASTY: _NASTY}), encoding="utf-8")
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    (run_dir / "summary.json").write_text(
        json.dumps({**summary, "strategy": _NASTY, "digest": _NASTY}), encoding="utf-8"
    )
    assert "script" not in checked(page_of(run_dir)).tags


def test_metrics_that_are_not_finite_are_dashes(run_dir: Path) -> None:
    bad = {**metrics(0.5), "nll": float("nan"), "ece": float("inf"), "accuracy": None}
    write_rows(run_dir / "clients.jsonl", [{**client("c0"), "global": bad}])
    rounds = [{**one_round(1), "metrics": {**evaluation(0.5), "clients_global": bad}}]
    write_rows(run_dir / "rounds.jsonl", rounds)
    page = page_of(run_dir)
    assert re.search(r">–</td>\s*<td>–</td><td>–</td>\s*<td>0.500</td>", page)
    assert not re.search(r"\b(nan|inf|None)\b", page)


def test_a_run_without_any_evaluation_has_a_report(run_dir: Path) -> None:
    (run_dir / "clients.jsonl").unlink()
    write_rows(run_dir / "rounds.jsonl", [{**one_round(1), "metrics": None}])
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    nothing = dict.fromkeys(summary["metrics"])
    (run_dir / "summary.json").write_text(json.dumps({**summary, "metrics": nothing}), encoding="utf-8")
    page = page_of(run_dir)
    assert "was not evaluated" in page
    assert "No round was evaluated: there are no curves" in page
    assert page.count("<svg ") == 1  # the traffic


def test_a_lone_evaluation_and_no_traffic_are_no_plots(run_dir: Path) -> None:
    rounds = [{**one_round(number), "bytes_up": {}, "bytes_down": {}} for number in (1, 2)]
    write_rows(run_dir / "rounds.jsonl", rounds)
    page = page_of(run_dir)
    assert "Only one round was evaluated: there are no curves" in page
    assert page.count("<svg ") == 1  # the labels
    assert "clients, global test set" in page
    write_rows(run_dir / "rounds.jsonl", [*rounds, {**rounds[0], "round": 3}])
    page = page_of(run_dir)
    assert "round was evaluated" not in page
    assert page.count("<svg ") == 4


@pytest.mark.parametrize(
    ("classes", "shown"),
    [
        (["cat", "dog", "a rather long-winded name"], ["cat", "dog", "a rather long-wi…"]),
        (["cat", "dog"], ["0", "1", "2"]),  # another number of classes than was counted
        (None, ["0", "1", "2"]),
    ],
)
def test_the_labels_have_the_names_of_the_classes(run_dir: Path, classes: list[str] | None, shown: list[str]) -> None:
    if classes:
        (run_dir / "manifest.json").write_text(json.dumps({"classes": classes}), encoding="utf-8")
    [labels] = re.findall(r'<svg role="img" aria-label="labels".*?</svg>', page_of(run_dir), flags=re.DOTALL)
    assert re.findall(r"<text[^>]*>([^<]*)</text>", labels) == [*shown, "class", "c0", "c1"]


def test_ece_is_in_percent_and_lacking_is_there(run_dir: Path) -> None:
    page = page_of(run_dir)
    assert page.count("<td>10.0 %</td>") >= 2  # 0.2 * 0.5, of the clients and of each of them
    rows = re.findall(r"<td>10</td><td>(\d+)</td>", page)
    assert rows == ["4", "4"]


def test_the_time_has_that_of_the_clients_alone(run_dir: Path) -> None:
    (run_dir / "alone").mkdir()
    (run_dir / "alone" / "summary.json").write_text(json.dumps({"seconds": 70.0}), encoding="utf-8")
    assert "<dd>3 min 15 s</dd><small>3 rounds, 1 min 10 s of it the clients alone</small>" in page_of(run_dir)


def test_many_clients_and_rounds_still_fit(run_dir: Path) -> None:
    write_rows(run_dir / "clients.jsonl", [client(f"c{number}") for number in range(200)])
    write_rows(run_dir / "rounds.jsonl", [one_round(number) for number in range(1, 301)])
    assert len(page_of(run_dir)) < 1_500_000


def test_an_unfinished_last_line_is_left_out(run_dir: Path) -> None:
    with (run_dir / "rounds.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"round": 4, "sec')
    page_of(run_dir)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "summary.json").unlink(), r"summary\.json: expected a file"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "expected a JSON object, found list"),
        (lambda folder: (folder / "rounds.jsonl").write_text("{}\n{\n{}\n"), r"rounds\.jsonl, line 2: expected JSON"),
    ],
)
def test_damaged_files_are_named(run_dir: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(run_dir)
    with pytest.raises(UserError, match=message):
        write_report(run_dir)
