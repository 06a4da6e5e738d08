"""Commands and small trees for tests of the tools and of the bundles."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.house import ROOT


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, output captured."""
    full = {**os.environ, "NO_COLOR": "1", **environment}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=full, text=True, capture_output=True, check=False
    )


def assert_passes(done: subprocess.CompletedProcess[str]) -> None:
    """Fail with the command's own output."""
    if done.returncode:
        pytest.fail(
            f"{' '.join(done.args[:4])} ...: exit code {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False
        )


def plant(root: Path, files: dict[str, str]) -> None:
    """Write a small tree."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
