"""Bytes that we count against bytes that the network carried, from the counters of the nodes' own interfaces.

``pytest -m slow -s tests/deploy/test_wire.py`` prints both.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.data.test_dividing import experiment_of
from tests.deploy.federation import federation, warm_programs

pytestmark = [pytest.mark.flower, pytest.mark.slow]


@pytest.mark.parametrize("width", [8, 2048])
def test_counted_bytes_are_what_the_wire_carried(width: int, tmp_path: Path) -> None:
    """A model of 128 times 2048 weights is 1.2 MB; messages of that size are counted within 5 %.

    Weights and offsets of 64 to 128, 128 to the width, and the width to 10; two clients, two rounds, four bytes each.
    """
    expected = 2 * 2 * 4 * (64 * 128 + 128 + 128 * width + width + width * 10 + 10)
    settings = {"rounds": 2, "engine.evaluate_every": 0, "federation.clients": 2, "federation.views": ["image"]}
    experiment = experiment_of("feddf").changed(
        **settings, **{"federation.architectures": ["mlp"], "federation.feature_width": width}
    )
    with warm_programs() as programs, federation(tmp_path, experiment) as here:
        if not here.network.apart:
            pytest.skip("no network namespaces: the loopback interface carries everybody's bytes")
        here.programs = programs
        here.start_nodes()
        before = {key: here.network.carried(key) for key in here.clients}
        ran = here.run(tmp_path / "out")
        after = {key: here.network.carried(key) for key in here.clients}
    assert ran.process.returncode == 0, ran.said
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    down, up = (sum(after[key][n] - before[key][n] for key in here.clients) for n in (0, 1))
    assert summary["bytes_up"] == summary["bytes_down"] == expected
    sent = summary["bytes_up"] + summary["bytes_measured"]  # the last round is evaluated
    for name, counted, carried in (("up", sent, up), ("down", summary["bytes_down"], down)):
        sys.stdout.write(f"width {width}, {name}: counted {counted}, carried {carried}, {carried / counted:.3f}\n")
        assert carried > counted
        if width == 2048:
            assert abs(carried / counted - 1) < 0.05
