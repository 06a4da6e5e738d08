"""One Ray for the tests of a file, and a user's own strategies."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.mortals import CPUS, STRATEGY
from tests.engine.processes import one_ray


@pytest.fixture(scope="module")
def ray_for_all() -> Iterator[None]:
    """Start Ray once; the grids of a file use it, and must leave it as they found it."""
    with one_ray(CPUS):
        yield


@pytest.fixture
def no_worker_is_left(ray_for_all: None) -> Iterator[None]:
    """Expect that Ray has all its CPUs again when a test ends."""
    yield
    import ray

    assert ray.is_initialized(), "a Ray that was there before must stay"
    deadline = time.monotonic() + 15
    while (free := ray.available_resources().get("CPU", 0)) < CPUS and time.monotonic() < deadline:
        time.sleep(0.1)
    assert free == CPUS


@pytest.fixture
def own_strategies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder with a user's own strategies."""
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "mortal.py").write_text(STRATEGY, encoding="utf-8")
    (tmp_path / "deaths").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("mortal", "here_only", "dies_at_start"):
        sys.modules.pop(f"strategies.{name}", None)
