"""Which Ray a run gets: none that is not there, and none that is too small without a word."""

import signal
import sys
import time

import pytest

from fedkd.config import Experiment
from fedkd.data.federation import build
from fedkd.engine.cluster import check_room, connect, tell_of_idle_workers
from fedkd.errors import UserError

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "127.0.0.1:1", "ray://127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_refused_at_once(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=f"expected a running Ray cluster at '{address}', found none that answers"):
        connect(Experiment().changed(**{"engine.address": address, "engine.workers": 1}))
    assert time.monotonic() - started < 10
    with pytest.raises(UserError, match="expected ray://host:port, host:port or 'auto', found 'ray://nowhere'"):
        connect(Experiment().changed(**{"engine.address": "ray://nowhere", "engine.workers": 1}))


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine.workers": 1}, ""),
        ({"engine.workers": 4, "engine.cohort_size": 25}, ""),
        (
            {"engine.workers": 8},
            "8 workers, where a round has work for 2 at a time; lower engine.cohort_size to 13, which changes no bit, "
            "or engine.workers",
        ),
        (
            {"engine.workers": 8, "federation.participation": 0.4},
            "8 workers, where a round has work for 1 at a time; lower engine.cohort_size to 5, which changes no bit, "
            "or engine.workers",
        ),
        (
            {"engine.workers": 30, "federation.clients": 20, "engine.plan": "one-by-one"},
            "30 workers, where a round has work for 20 at a time; lower it",
        ),
    ],
)
def test_workers_that_will_be_idle_are_told_of(
    changes: dict[str, object], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    few = {"data.public": 0, "federation.clients": 100, "federation.min_samples": 0, "engine.plan": "cohorts"}
    experiment = Experiment().changed(**{**few, **changes})

    tell_of_idle_workers(experiment, list(build(experiment).holdings))

    assert caplog.messages == ([f"engine.workers: {message}"] if message else [])


def test_an_address_that_is_not_used_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    experiment = Experiment().changed(**{"engine.workers": 1})
    assert not connect(experiment)
    assert caplog.messages == []
    assert not connect(experiment.changed(**{"engine.address": "ray://127.0.0.1:1"}))
    assert caplog.messages[0].startswith("engine.address is not used: this process is connected to a Ray already")


def test_what_ray_has_begun_is_ended_and_sigterm_is_its_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def half(**options: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        raise KeyboardInterrupt

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", half)
    monkeypatch.setattr("ray.shutdown", lambda: ended.append(True))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        connect(Experiment().changed(**{"engine.workers": 1}))
    assert ended == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_ray_starts_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray answers SIGTERM by an exit of its own, of which nobody would hear."""
    stopped: list[bool] = []

    def start(experiment: Experiment) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: stopped.append(True))
    monkeypatch.setattr("fedkd.engine.cluster._start_or_join", start)
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        connect(Experiment().changed(**{"engine.workers": 1}))

    assert stopped == [True]
    assert signal.getsignal(signal.SIGTERM) is before
