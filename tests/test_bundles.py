"""The wheel and Flower's bundle hold every strategy, and import."""

import importlib
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house import PACKAGES, ROOT, modules
from tests.running import assert_passes, run

_IMPORT_EVERYTHING = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root))
for path in sorted((root / "strategies").rglob("*.py")):
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__) == path, f"{name} came from {module.__file__}"
    print(name)
flower = importlib.import_module("fedkd.app.flower")
assert root in pathlib.Path(flower.__file__).parents and flower.server_app and flower.client_app
"""


@pytest.fixture
def copy_of_the_tree(tmp_path: Path) -> Path:
    """Return a copy without what runs and tools left behind."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "CHANGELOG.md", "constraints.txt"):
        shutil.copy(ROOT / name, copy)
    for folder in (*PACKAGES, "simulations"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def unpack_and_import(archive: Path, target: Path) -> set[str]:
    """Unpack a bundle and import every strategy from it, and Flower's entry points."""
    with zipfile.ZipFile(archive) as bundle:
        bundle.extractall(target)  # our own archive, just built
    done = run(sys.executable, "-W", "ignore", "-c", _IMPORT_EVERYTHING, target, cwd=target)
    assert_passes(done)
    return set(done.stdout.split())


def strategy_modules() -> set[str]:
    """Return the dotted names of the strategy modules in the tree."""
    return {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules(ROOT, "strategies")}


def test_the_wheel_holds_every_strategy(copy_of_the_tree: Path, tmp_path: Path) -> None:
    assert_passes(
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, cwd=copy_of_the_tree)
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert unpack_and_import(wheel, tmp_path / "wheel") == strategy_modules()
    assert all((tmp_path / "wheel" / package / "py.typed").is_file() for package in PACKAGES)


def test_the_fab_holds_every_strategy(copy_of_the_tree: Path, tmp_path: Path) -> None:
    before = (copy_of_the_tree / "pyproject.toml").read_bytes()
    flwr = Path(sys.executable).with_name("flwr")
    assert_passes(run(flwr, "build", "--app", copy_of_the_tree, cwd=tmp_path, FLWR_HOME=str(tmp_path / "home")))
    (fab,) = tmp_path.glob("*.fab")
    assert unpack_and_import(fab, tmp_path / "fab") == strategy_modules()
    assert (copy_of_the_tree / "pyproject.toml").read_bytes() == before


def test_the_version_is_the_packages() -> None:
    declared = re.search(r'^version = "(.+?)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert declared is not None
    assert importlib.import_module("fedkd").__version__ == declared.group(1)
