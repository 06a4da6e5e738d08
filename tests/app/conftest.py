"""What tests of nodes that come and go share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedkd.app import flower, loop, punctual
from tests.app.nodes import Deployment


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Look for nodes and replies a hundred times as often, and leave no client side of a test behind."""
    monkeypatch.setattr(punctual, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(loop, "_LOOK_SECONDS", 0.01)
    yield
    flower._client_side.cache_clear()


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """Return three nodes, and an experiment of four rounds."""
    return Deployment(tmp_path, {"rounds": 4, "engine.join_timeout": 0.3})
