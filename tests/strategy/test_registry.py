"""Strategies are found by name or by reference, the user's own as well as the built-in ones."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedkd import simulate
from fedkd.config import Experiment
from fedkd.errors import UserError
from fedkd.strategy import contract
from fedkd.strategy.registry import complete, create, find, names

ROOT = Path(__file__).resolve().parents[2]
BUILT_IN = ["centralized", "fd", "fedavg", "feddf", "fedmd", "fedproto", "fml", "local", "public_only"]

MINE = '''
"""A strategy of one's own."""

from typing import final

from fedkd import losses
from fedkd.strategy import MethodCard, Strategy


@final
class Mine(Strategy):
    """Train alone."""

    card = MethodCard(title="Mine", authors="Me", year=2026)

    def client_round(self, client, received):
        """Train."""
        client.fit(client.private, losses.cross_entropy)

    def server_round(self, server, replies):
        """Do nothing."""
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty strategies folder in a working directory of one's own; afterwards nothing of it is left."""
    path, modules = list(sys.path), set(sys.modules)
    own = tmp_path / "strategies"
    own.mkdir()
    monkeypatch.chdir(tmp_path)
    yield own
    sys.path[:] = path
    importlib.invalidate_caches()
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and tmp_path in Path(sys.modules[name].__file__ or "").parents:
            del sys.modules[name]


def write(path: Path, text: str = MINE) -> Path:
    """Write a module."""
    path.write_text(text, encoding="utf-8")
    return path


def test_the_built_in_ones_are_found_each_in_its_file() -> None:
    found = names()
    assert [name for name in found if name in BUILT_IN] == BUILT_IN
    assert list(found) == sorted(found)
    assert all(path == ROOT / "strategies" / f"{name}.py" for name, path in found.items())
    assert find("fedmd").__name__ == "FedMD"
    assert find("fedmd").__module__ == "strategies.fedmd"


def test_a_users_own_is_found_beside_the_built_in_ones_and_runs(folder: Path) -> None:
    path = write(folder / "mine.py")
    assert names()["mine"] == path
    assert set(BUILT_IN) < set(names())
    assert Path(sys.modules[find("mine").__module__].__file__ or "") == path
    contract.check_class("mine")
    small = contract.experiment("mine", {"rounds": 1})
    assert simulate(small).digest == simulate(small.changed(strategy="local")).digest
    assert find("fedmd").__module__ == "strategies.fedmd"


def test_nothing_of_it_is_left_afterwards() -> None:
    assert "mine" not in names()
    with pytest.raises(UserError, match="unknown strategy 'mine'"):
        find("mine")


def test_a_module_that_appears_later_is_found_too(folder: Path) -> None:
    names()
    write(folder / "late.py")
    assert find("late").__name__ == "Mine"


def test_an_underscore_hides_a_module(folder: Path) -> None:
    write(folder / "_draft.py")
    assert not [name for name in names() if name.startswith("_")]
    with pytest.raises(UserError, match="unknown strategy '_draft'"):
        find("_draft")
    assert find("strategies._draft:Mine").__name__ == "Mine"
    assert find("strategies._template:Template").__name__ == "Template"


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    write(folder / "fedavg.py")
    with pytest.raises(UserError, match=r"strategy 'fedavg': expected one file, found .*; rename one") as caught:
        names()
    assert str(folder / "fedavg.py") in str(caught.value)
    assert str(ROOT / "strategies" / "fedavg.py") in str(caught.value)


@pytest.mark.parametrize("intruder", ["strategies/__init__.py", "strategies.py"])
def test_an_intruder_that_hides_the_others_is_named(folder: Path, intruder: str) -> None:
    path = write(folder.parent / intruder, "")
    if intruder == "strategies.py":
        folder.rmdir()
        sys.path.insert(0, str(folder.parent))
    with pytest.raises(UserError, match=r"expected a folder without __init__.py, found .*hides all others") as caught:
        names()
    assert str(path) in str(caught.value)


def test_an_intruder_is_named_in_a_fresh_process_too(folder: Path) -> None:
    write(folder / "__init__.py", "")
    code = f"import sys; sys.path.append({str(ROOT)!r}); from fedkd.strategy.registry import names; names()"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder.parent, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("fedkd.errors.UserError: strategies: expected a folder without")


def test_no_folder_at_all_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match=r"expected a folder without __init__.py, found none"):
        names()


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown strategy 'fedmb': did you mean 'fedmd'\? Known: centralized, cmkd, "):
        find("fedmb")


BROKEN = [
    ("import no_such_library", "'strategies.broken': could not be imported: ModuleNotFoundError: .*'no_such_library'"),
    ("def f(:", "could not be imported: SyntaxError"),
    ("1 / 0", "could not be imported: ZeroDivisionError: division by zero"),
    ("x = 1", r"broken.py: expected exactly one class derived from Strategy, found 0"),
    ("from strategies.fd import FD", "expected exactly one class derived from Strategy, found 0"),
    (MINE + MINE.replace("class Mine", "class Yours"), "expected exactly one class derived from Strategy, found 2"),
    (MINE.replace("def server_round", "def server_turn"), "strategies.broken:Mine: .*found no server_round; write"),
    (MINE.replace("card =", "business_card ="), "strategies.broken:Mine: expected its method card, found none"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_broken_module_is_listed_and_says_what_is_wrong_when_asked_for(folder: Path, text: str, message: str) -> None:
    write(folder / "broken.py", text)
    assert "broken" in names()
    with pytest.raises(UserError, match=message):
        find("broken")
    assert find("fedavg").__name__ == "FedAvg"


def test_an_object_reference_needs_no_folder(folder: Path) -> None:
    write(folder.parent / "my_package_of_methods.py")
    sys.path.insert(0, str(folder.parent))
    assert find("my_package_of_methods:Mine").__name__ == "Mine"
    assert find("strategies.fedmd:FedMD") is find("fedmd")
    small = contract.experiment("my_package_of_methods:Mine", {"rounds": 1})
    assert simulate(small).digest == simulate(small.changed(strategy="local")).digest


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_package:Mine", "'no_such_package': could not be imported: ModuleNotFoundError"),
        ("strategies.fedmd:FedMB", "'strategies.fedmd:FedMB': expected a class derived from .*Strategy, found None"),
        ("strategies.fedmd:losses", "expected a class derived from fedkd.strategy.Strategy, found <module"),
        ("fedkd.config:Experiment", "expected a class derived from fedkd.strategy.Strategy, found <class"),
        ("fedkd.strategy:Strategy", "found no client_round and no server_round"),
        (":FedMD", "could not be imported: ValueError"),
        ("strategies.fedmd:", "expected a class derived from"),
    ],
)
def test_a_wrong_reference_says_what_was_found(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(reference)


def test_a_complete_experiment_has_its_strategys_defaults_and_stays_the_same() -> None:
    given = Experiment(strategy="fd", strategies={"fedmd": {"digest_epochs": 7}})
    written = complete(given)
    assert written.strategies == {"fedmd": {"digest_epochs": 7}, "fd": {"weight": 1.0}}
    assert complete(written) == written
    assert create(written).settings == create(given).settings
    keys = complete(Experiment(strategy="cqkd")).strategies["cqkd"].keys()
    assert keys == find("cqkd").Settings.model_fields.keys() - {"teacher"}
    reference = Experiment(strategy="strategies.fd:FD", strategies={"strategies.fd:FD": {"weight": 2}})
    assert complete(reference).strategies == {"strategies.fd:FD": {"weight": 2.0}}


def test_settings_come_from_the_strategys_own_table() -> None:
    def settings(name: str, **tables: dict[str, Any]) -> Any:
        return create(Experiment(strategy=name, strategies=tables)).settings

    assert settings("fedmd", fedmd={"digest_epochs": 7}, fd={"weight": 3.0}).digest_epochs == 7
    assert settings("fd", fedmd={"digest_epochs": 7}).weight == 1.0
    assert settings("strategies.fd:FD", **{"strategies.fd:FD": {"weight": 2.0}}).weight == 2.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"digest_epoch": 1}, r"^strategies.fedmd: unknown key 'digest_epoch': did you mean 'digest_epochs'\?"),
        ({"digest_epochs": -1}, r"^strategies.fedmd: digest_epochs: expected a number greater .* to 0, found -1"),
        ({"digest_epochs": "2"}, r"^strategies.fedmd: digest_epochs: .*found '2'"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create(Experiment(strategy="fedmd", strategies={"fedmd": values}))
