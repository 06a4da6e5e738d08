"""Two Ray nodes: the bits of one process, also if one of the nodes is lost in the middle of a round."""

import gc
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fedkd import config
from fedkd.app.history import RoundRecord
from fedkd.config import Experiment
from fedkd.engine.simulate import simulate
from tests.engine.processes import ROOT, kill, tree, wait_until, workers_among

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # Ray's own
]

QUICKSTART = config.load(ROOT / "simulations" / "quickstart.toml")
MEMORY = 100_000_000


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give a cluster with a node of two places, where the driver is, and one of a single place."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:  # a short path
        arguments = {"include_dashboard": False, "object_store_memory": MEMORY}
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "temp_dir": folder, **arguments})
        try:
            found.add_node(num_cpus=1, object_store_memory=MEMORY)
            yield found
        finally:
            found.shutdown()
            gc.collect()


def on(cluster: Any, experiment: Experiment) -> Experiment:
    return experiment.changed(**{"engine.address": cluster.address, "engine.workers": 2})


def processes_of(node: Any) -> list[int]:
    return tree(node.all_processes["raylet"][0].process.pid)


@pytest.mark.parametrize(("plan", "lost"), [("one-by-one", False), ("one-by-one", True), ("cohorts", True)])
def test_two_nodes_have_the_bits_of_one_process_also_if_one_is_lost(cluster: Any, plan: str, lost: bool) -> None:
    experiment = QUICKSTART.changed(**{"engine.plan": plan})
    (far,) = cluster.worker_nodes
    seen: list[int] = []

    def watch() -> None:
        assert wait_until(lambda: bool(workers_among(processes_of(far))), 120) is not None
        seen.extend(processes_of(far))
        kill(*(seen if lost else ()))

    watcher = threading.Thread(target=watch)

    def after(record: RoundRecord) -> None:
        if record.round == 2:  # now clients' states come from both nodes
            watcher.start()

    result = simulate(on(cluster, experiment), on_round=after)
    watcher.join()

    assert seen, "the second node had nothing to do"
    expected = simulate(experiment)
    assert [row["digest"] for row in result.rounds] == [row["digest"] for row in expected.rounds]
    assert result.digest == expected.digest
    assert not any(row["failed"] or row["unmeasured"] for row in result.rounds)
