"""Which Ray a run gets: none that is not there, and none that is too small without a word."""

import time

import pytest

from fedkd.config import Experiment
from fedkd.engine.cluster import check_room, connect
from fedkd.errors import UserError

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "127.0.0.1:1", "ray://127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_refused_at_once(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=f"expected a running Ray cluster at '{address}', found none that answers"):
        connect(Experiment().changed(**{"engine.address": address}))
    assert time.monotonic() - started < 10
    with pytest.raises(UserError, match="expected ray://host:port, host:port or 'auto', found 'ray://nowhere'"):
        connect(Experiment().changed(**{"engine.address": "ray://nowhere"}))


def test_a_cluster_that_is_too_small_yet_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, "memory": 64e9})
    larger = Experiment().changed(**{"engine.workers": 8, "engine.address": "10.0.0.1:6379"})

    check_room(larger.changed(**{"engine.workers": 2}), 300.0)
    assert caplog.messages == []
    check_room(larger, 300.0)

    [message] = caplog.messages
    assert message.startswith("engine: expected 8 CPU for 8 workers, found 2; waiting 300 s for the cluster to grow")
