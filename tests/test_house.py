"""The tree keeps the rules of the house, and each check of them can fail."""

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.house import (
    CHECKS,
    MAX_FILE_LINES,
    PACKAGES,
    ROOT,
    floor_violations,
    flower_violations,
    line_count,
    loader_violations,
    mirror_violations,
    modules,
    namespace_violations,
    size_violations,
    strategy_violations,
)
from tests.running import plant


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_tree_keeps_the_rule(check: Callable[[Path], list[str]]) -> None:
    violations = check(ROOT)
    assert not violations, f"{len(violations)} found:\n" + "\n".join(violations)


# --- each check can fail

_GOOD = {
    "fedkd/__init__.py": "__version__ = '0'\ndef __getattr__(name):\n    from fedkd.engine import simulate\n",
    "fedkd/py.typed": "",
    "fedkd/losses/__init__.py": "from fedkd.errors import UserError\nfrom fedkd import __version__\n",
    "fedkd/losses/response.py": "def kl():\n    model.eval()\n",
    "fedkd/errors.py": "import fedkd\nprint(fedkd.__version__)\n",
    "fedkd/engine/__init__.py": "from fedkd import losses\nfrom flwr.serverapp.strategy import FedAvg\n",
    "fedkd/flower_internals.py": "from flwr.server.grid import InMemoryGrid\n",
    "fedkd/strategy/registry.py": "import strategies\n",
    "strategies/py.typed": "",
    "strategies/fedmd.py": "from fedkd import losses\nfrom fedkd.strategy import Strategy\n",
    "strategies/_template.py": "class Template: ...\n",
    "tests/losses/test_response.py": "",
}

_BAD: tuple[tuple[Callable[[Path], list[str]], str, str, str], ...] = (
    (floor_violations, "fedkd/attic.py", "", "on no floor"),
    (floor_violations, "fedkd/data/views.py", "from fedkd.learner.fit import fit\n", "views.py:1: data (floor 1)"),
    (floor_violations, "fedkd/data/views.py", "def f():\n    from fedkd import app\n", "views.py:2: data"),
    (floor_violations, "fedkd/data/views.py", "import fedkd\nfedkd.simulate()\n", "fedkd.simulate above"),
    (floor_violations, "fedkd/data/views.py", "m = importlib.import_module('fedkd.cli')\n", "imports fedkd.cli"),
    (floor_violations, "fedkd/errors.py", "import fedkd\nfedkd.losses.kl()\n", "circle"),
    (strategy_violations, "strategies/fd.py", "from strategies.fedmd import FedMD\n", "sibling"),
    (strategy_violations, "strategies/fd.py", "from strategies import fedmd\n", "sibling"),
    (strategy_violations, "strategies/fd.py", "from . import fedmd\n", "relative"),
    (strategy_violations, "strategies/fd.py", "from fedkd.app import server\n", "up to floor 3"),
    (strategy_violations, "fedkd/cli.py", "from strategies.fedmd import FedMD\n", "only fedkd/strategy/registry.py"),
    (strategy_violations, "fedkd/cli.py", "import_module(f'strategies.{name}')\n", "only fedkd/strategy/registry.py"),
    (size_violations, "fedkd/errors.py", "x = 1\n" * 501, "501 lines"),
    (size_violations, "fedkd/errors.py", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
    (mirror_violations, "fedkd/data/views.py", "def f(): ...\n", "no tests/data/test_views.py"),
    (mirror_violations, "strategies/fd.py", "class FD: ...\n", "no tests/strategies/test_fd.py"),
    (flower_violations, "strategies/fd.py", "from flwr.server.strategy import FedAvg\n", "not public"),
    (flower_violations, "fedkd/app/server.py", "from flwr.serverapp.strategy.fedavg import FedAvg\n", "not public"),
    (flower_violations, "fedkd/app/server.py", "import flwr\n", "not public"),
    (loader_violations, "fedkd/app/state.py", "import pickle\n", "import of pickle"),
    (loader_violations, "fedkd/app/state.py", "from torch import load\n", "import of torch.load"),
    (loader_violations, "fedkd/app/state.py", "import torch as t\nt.load(f)\n", "state.py:2: unsafe torch.load()"),
    (loader_violations, "fedkd/app/state.py", "f(weights_only=False)\n", "weights_only=False"),
    (loader_violations, "fedkd/app/state.py", "np.load(f, allow_pickle=True)\n", "allow_pickle=True"),
    (loader_violations, "simulations/study.py", "eval('1')\n", "eval()"),
    (namespace_violations, "strategies/__init__.py", "", "must not exist"),
    (namespace_violations, "strategies/ab_test.py", "", "named like a test"),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_good_tree_passes(check: Callable[[Path], list[str]], tmp_path: Path) -> None:
    plant(tmp_path, _GOOD)
    assert check(tmp_path) == []


@pytest.mark.parametrize(("check", "name", "text", "message"), _BAD)
def test_a_planted_violation_is_found(
    check: Callable[[Path], list[str]], name: str, text: str, message: str, tmp_path: Path
) -> None:
    plant(tmp_path, {**_GOOD, name: text})
    violations = check(tmp_path)
    assert len(violations) == 1
    assert message in violations[0]


def test_the_median_file_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = sorted(line_count(path) for path in modules(ROOT, *PACKAGES))
    median, tenth = statistics.median(sizes), sizes[int(0.9 * (len(sizes) - 1))]
    with capsys.disabled():
        print(f"\n{len(sizes)} files: median {median:.0f} lines, 90 % within {tenth}, longest {sizes[-1]}")  # noqa: T201
    assert median <= MAX_FILE_LINES / 2
