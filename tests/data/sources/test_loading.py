"""A data set by name or by path."""

from pathlib import Path

import numpy as np
import pytest

from fedkd.data.sources import default_folder, load, names
from fedkd.errors import UserError
from tests.data.sources.conftest import save


def test_a_data_set_is_loaded_once() -> None:
    assert load("digits") is load("digits")


def test_names_describe_each_data_set_in_one_line() -> None:
    assert {"digits", "mnist", "cifar10", "fsdd", "spoken-digits", "hapt", "mfeat"} < set(names())
    assert all(text and "\n" not in text and len(text) < 120 for text in names().values())


def test_the_documentation_names_each_data_set() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    assert {name for name in names() if f"| `{name}` |" not in text} == set()


@pytest.mark.parametrize(
    ("name", "folder"),
    [("mnist", "mnist"), ("hapt-12", "hapt"), ("semeion", "digits-multi"), ("spoken-digits", ".")],
)
def test_some_data_sets_share_a_folder(monkeypatch: pytest.MonkeyPatch, name: str, folder: str) -> None:
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    assert default_folder(name) == Path("data") / folder
    monkeypatch.setenv("FEDKD_DATA", "elsewhere")
    assert default_folder(name) == Path("elsewhere") / folder


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown data set 'digit': did you mean 'digits'.*<file>.npz"):
        load("digit")


def test_the_environment_variable_names_the_folder_of_all_data_sets(
    small_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_mnist / "mnist").mkdir()
    (small_mnist / "MNIST").rename(small_mnist / "mnist" / "MNIST")
    monkeypatch.setenv("FEDKD_DATA", str(small_mnist))
    assert load("mnist").labels.tolist() == [5, 0, 4, 1, 9, 2]


def test_data_is_looked_for_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="data/fashion-mnist/FashionMNIST/raw, not found"):
        load("fashion-mnist")


def test_a_path_is_resolved_before_it_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, label in (("one", 0), ("two", 1)):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "mine.npz", labels=np.array([label, 1]), x=np.zeros((2, 1)), classes=["a", "b"])
    found = []
    for folder in ("one", "two"):
        monkeypatch.chdir(tmp_path / folder)
        found.append(load("mine.npz").labels.tolist())
    assert found == [[0, 1], [1, 1]]
    assert load("mine.npz") is load("../two/mine.npz")
