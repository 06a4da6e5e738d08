"""Workers that cannot start, or die while they do."""

import os
import time
from pathlib import Path

import pytest

from fedkd.app.loop import run
from fedkd.config import Experiment
from fedkd.engine import pool
from fedkd.engine.local import LocalGrid
from fedkd.engine.ray import RayGrid
from fedkd.errors import RunError
from tests.engine.mortals import CPUS, SMALL, on_ray, outcome

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("no_worker_is_left"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # Ray's own
]

HERE_ONLY = """
import os

if os.getpid() != DRIVER:
    raise ImportError("a library that this worker does not have")

from strategies.mortal import Mortal as Base
from fedkd.strategy import Strategy

class HereOnly(Strategy):
    card = Base.card
    client_round = Base.client_round
    server_round = Base.server_round
"""


DIES_AT_START = """
import os
import signal
from pathlib import Path

if os.getpid() != DRIVER and not Path("FOLDER/died").exists():
    Path("FOLDER/died").touch()
    os.kill(os.getpid(), signal.SIGKILL)

from strategies.mortal import Mortal as Base
from fedkd.strategy import Strategy

class DiesAtStart(Strategy):
    card = Base.card
    client_round = Base.client_round
    client_setup = Base.client_setup
    server_round = Base.server_round
    Settings = Base.Settings
"""


def test_a_worker_that_cannot_start_ends_the_run_with_the_cause(own_strategies: Path) -> None:
    text = HERE_ONLY.replace("DRIVER", str(os.getpid()))
    (own_strategies / "strategies" / "here_only.py").write_text(text, encoding="utf-8")
    experiment = Experiment(**{**SMALL, "strategy": "here_only", "strategies": {}})
    started = time.monotonic()

    with pytest.raises(RunError, match="could not be started:") as caught:
        on_ray(experiment, workers=1)

    assert "ImportError: a library that this worker does not have" in str(caught.value)
    assert time.monotonic() - started < 60


def test_a_worker_that_is_killed_while_it_starts_is_replaced(own_strategies: Path) -> None:
    text = DIES_AT_START.replace("DRIVER", str(os.getpid())).replace("FOLDER", str(own_strategies))
    (own_strategies / "strategies" / "dies_at_start.py").write_text(text, encoding="utf-8")
    settings = {"folder": str(own_strategies / "deaths"), "culprit": "nobody"}
    experiment = Experiment(**{**SMALL, "strategy": "dies_at_start", "strategies": {"dies_at_start": settings}})

    finished = on_ray(experiment, workers=1)

    assert (own_strategies / "died").exists()
    assert outcome(finished) == outcome(run(LocalGrid(experiment), experiment))


def test_a_worker_for_which_no_room_comes_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment(strategy="local", **SMALL)
    with RayGrid(experiment.changed(**{"engine.workers": CPUS})):
        monkeypatch.setattr(pool, "START_SECONDS", 0.5)
        with pytest.raises(RunError, match="a Ray worker could not be started"):
            RayGrid(experiment.changed(**{"engine.workers": 1}))
