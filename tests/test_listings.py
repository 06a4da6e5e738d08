from pathlib import Path

import pytest

from fedkd.config import Experiment
from fedkd.listings import COLUMNS, cells, listing, to_markdown
from fedkd.strategy import registry

ROOT = Path(__file__).resolve().parents[1]


def test_every_strategy_model_and_data_set_is_listed():
    assert [row["name"] for row in listing("strategies")] == list(registry.names())
    assert {"cnn", "mlp"} <= {row["name"] for row in listing("models")}
    assert {"float16", "top-k"} <= {row["name"] for row in listing("codecs")}
    assert {"digits", "mnist"} <= {row["name"] for row in listing("data")}


def test_every_setting_has_a_key_that_can_be_set_and_a_meaning():
    rows = listing("settings")
    assert all(row["meaning"] for row in rows)
    assert "train.lr" in {row["key"] for row in rows}
    assert "strategies.fedmd.digest_epochs" in {row["key"] for row in rows}
    for row in rows:
        if row["key"] == "data.public_labels":
            assert Experiment().changed(**{row["key"]: True}).data.public_labels


def test_a_strategy_that_cannot_be_imported_is_reported_in_its_row(tmp_path, monkeypatch):
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "broken_one.py").write_text("import no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    row = next(row for row in listing("strategies") if row["name"] == "broken_one")
    assert "no_such_module" in row["error"]
    assert len(cells("strategies", row)) == len(COLUMNS["strategies"])


@pytest.mark.parametrize(
    ("what", "file"),
    [
        ("strategies", "README.md"),
        ("settings", "docs/experiment.md"),
        ("codecs", "docs/experiment.md"),
        ("losses", "docs/losses.md"),
        ("transforms", "docs/views.md"),
    ],
)
def test_the_documentation_holds_what_is_generated(what, file):
    table = to_markdown(what, listing(what))
    assert table in (ROOT / file).read_text(encoding="utf-8"), (
        f"run `fedkd list {what} --markdown`, and put it into {file}"
    )
