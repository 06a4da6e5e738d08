"""The tools are content with the tree, and strict; importing fedkd is light; CI does what the README says."""

import re
import sys
from pathlib import Path

from tests.house import ROOT
from tests.running import assert_passes, plant, run


def test_ruff_is_content() -> None:
    assert_passes(run(sys.executable, "-m", "ruff", "check", "--output-format=concise", "."))


def test_mypy_is_content() -> None:
    assert_passes(run(sys.executable, "-m", "mypy", "--no-error-summary"))


_UNDOCUMENTED = '"""Doc."""\n\n\nclass Public:\n    """Doc."""\n\n    def method(self, x):\n        return x\n'


def test_ruff_asks_for_docstrings_and_annotations(tmp_path: Path) -> None:
    plant(tmp_path, {"fedkd/errors.py": _UNDOCUMENTED})
    done = run(
        sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", "--no-cache", ".", cwd=tmp_path
    )
    assert done.returncode == 1
    assert {"D102", "ANN001", "ANN201"} <= set(re.findall(r"\b(?:D|ANN)\d+", done.stdout))


def test_mypy_is_strict(tmp_path: Path) -> None:
    plant(tmp_path, {"fedkd/errors.py": _UNDOCUMENTED, "strategies/fd.py": "x: int = 'a'\n"})
    done = run(sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert {"no-untyped-def", "assignment"} <= set(re.findall(r"\[([\w-]+)\]", done.stdout))


def test_importing_fedkd_is_light() -> None:
    heavy = "[name for name in ('torch', 'flwr', 'ray', 'matplotlib') if name in sys.modules]"
    done = run(sys.executable, "-c", f"import sys, fedkd; print({heavy})")
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_ci_runs_the_readmes_test_command() -> None:
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert "python -m pytest" in command
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
