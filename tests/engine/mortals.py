"""A strategy whose clients die, fail and print, and runs of it on Ray that can be compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedkd.app.loop import Run, run
from fedkd.config import Experiment

CPUS = 2
SMALL: Mapping[str, Any] = {
    "rounds": 2,
    "data": {"public": 40, "validation": 1200, "test": 40},
    "federation": {"clients": 4, "architectures": ("mlp",), "feature_width": 8},
    "train": {"local_epochs": 1},
    "strategies": {"fedmd": {"transfer_epochs": 1}},
}

STRATEGY = '''
"""A strategy of a user's own, whose clients die, fail and print."""

import os
import signal
import time
from pathlib import Path
from typing import final

import torch
from pydantic import Field

from fedkd import ensemble, losses
from fedkd.strategy import MethodCard, Strategy, StrategySettings
from fedkd.knowledge import SoftLabels


@final
class Mortal(Strategy):
    card = MethodCard(title="test", authors="-", year=2026, up=SoftLabels, down=SoftLabels)

    class Settings(StrategySettings):
        folder: str = Field(description="where deaths are noted")
        culprit: str = Field("client-1", description="who dies")
        always: bool = Field(False, description="at every attempt, not only at the first of a round")
        hangs: str = Field("", description="who never comes to an end")

    def client_setup(self, client):
        client.state = {"brain": torch.ones(2, dtype=torch.bfloat16), "turned": torch.rand(301, 257).T}
        client.state["a"] = torch.rand(2)

    def client_round(self, client, received):
        if client.card.key == self.settings.culprit:
            died = Path(self.settings.folder) / f"round-{client.round}"
            if self.settings.always or not died.exists():
                with died.open("a") as file:
                    file.write("x")
                    file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        if client.card.key == self.settings.hangs:
            time.sleep(3600)
        client.state["brain"] *= 2
        for tensor in list(client.state.values()):  # whose order and place a sum depends on
            client.state["sum"] = client.state.get("sum", 0) + tensor.float().sum() / 3
        if received is not None:
            client.fit(client.public(received), losses.logit_mae, epochs=1)
        client.fit(client.private, losses.cross_entropy)
        return client.predict(client.next_public_subset)

    def server_round(self, server, replies):
        return server.soft_labels(ensemble.mean_logits(torch.stack([reply.knowledge.logits for reply in replies])))
'''


def mortal(folder: Path, **settings: object) -> Experiment:
    return Experiment(**{**SMALL, "strategy": "mortal", "strategies": {"mortal": {"folder": str(folder), **settings}}})


def on_ray(experiment: Experiment, workers: int) -> Run:
    from fedkd.engine.ray import RayGrid  # its import takes seconds: not for the tests that have no need of Ray

    experiment = experiment.changed(**{"engine.workers": workers})
    with RayGrid(experiment) as grid:
        return run(grid, experiment)


def outcome(finished: Run) -> object:
    named = ("failed", "unmeasured")
    rounds = [
        {**record.to_json(), "seconds": 0, **{name: sorted(getattr(record, name)) for name in named}}
        for record in finished.rounds
    ]
    return rounds, [client.to_json() for client in finished.clients], finished.versions
