"""Real processes end as the simulation does: a SuperLink and four SuperNodes with their own samples, by TLS and keys.

``pytest -m slow tests/deploy/test_parity.py``; with ``FEDKD_COLD=1`` every client half starts as users' do, which takes
several times as long (see ``warm.py``).
"""

from pathlib import Path

import pytest

from fedkd import simulate
from fedkd.app.run_folder import read_lines
from fedkd.config import Experiment
from tests.data.test_dividing import experiment_of
from tests.deploy.federation import Federation, federation, warm_programs

pytestmark = [pytest.mark.flower, pytest.mark.slow]


FAILING = '''
"""A strategy whose clients fail."""

from typing import final

from fedkd.knowledge import SoftLabels
from fedkd.strategy import MethodCard, Strategy


@final
class Failing(Strategy):
    card = MethodCard(title="test", authors="-", year=2026, up=SoftLabels, down=SoftLabels)

    def client_round(self, client, received):
        raise LookupError(f"no teacher in round {client.round}")

    def server_round(self, server, replies):
        return None
'''


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Return a federation whose nodes are there."""
    with (
        warm_programs() as programs,
        federation(tmp_path_factory.mktemp("federation"), experiment_of("fedmd")) as running,
    ):
        running.programs = programs
        running.start_nodes()
        yield running


def small(strategy: str) -> Experiment:
    return experiment_of(strategy).changed(**{"engine.evaluate_every": 0})


@pytest.mark.parametrize("strategy", ["fedmd", "feddf", "fedcqkd"])
def test_a_deployment_ends_as_the_simulation_does(here: Federation, strategy: str, tmp_path: Path) -> None:
    experiment = experiment_of(strategy).changed(**{"engine.evaluate_every": 1})
    expected = simulate(experiment)
    here.restart_nodes(experiment)

    ran = here.run(tmp_path / "out")

    assert ran.process.returncode == 0, ran.said
    rounds = read_lines(tmp_path / "out" / "rounds.jsonl")
    assert all(row["metrics"]["clients_global"] for row in rounds)
    assert [{**row, "seconds": 0} for row in rounds] == [{**row, "seconds": 0} for row in expected.rounds]
    assert read_lines(tmp_path / "out" / "clients.jsonl") == list(expected.clients)
    assert f"digest  {expected.digest}" in ran.said
    assert "round 1 " in ran.said
    assert (tmp_path / "out" / "report.html").exists()


def test_a_client_half_that_fails_ends_the_command_with_1_and_its_traceback(here: Federation, tmp_path: Path) -> None:
    """All fail: a round without any reply ends the run."""
    experiment = small("feddf")
    here.restart_nodes(experiment)
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "failing.py").write_text(FAILING, encoding="utf-8")

    ran = here.run(tmp_path / "out", "--set", "strategy=failing", folder=tmp_path)

    assert ran.process.returncode == 1
    assert "the run failed: round 1: no client sent a usable reply" in ran.said
    assert ran.said.count("in client_round") == 1
    assert "LookupError: no teacher in round 1" in here.nodes["client-0"].said, "in the node's own log too"
    assert "LookupError: no teacher in round 1" in ran.said
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_node_with_other_code_is_refused_by_name(here: Federation, tmp_path: Path) -> None:
    experiment = small("fedmd")
    here.restart_nodes(experiment, **{"client-2": here.other_code(tmp_path / "other")})

    ran = here.run(tmp_path / "out")

    assert ran.process.returncode == 1
    assert "only 3 of at least 4 clients can take part" in ran.said
    assert "client-2: code: expected" in ran.said
    assert "client-1: code" not in ran.said
    assert "Traceback" not in ran.said
