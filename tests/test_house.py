"""The rules of the house: floors, sizes, mirror tests, public doors only, and two bundles that hold every strategy.

A check is a function from a root folder to a list of violations, so that it can be shown to fail on a bad tree.
"""

import ast
import importlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fedkd", "strategies")
SHIPPED = (*PACKAGES, "simulations", "benchmarks")

_FLOORS = (
    "errors wording checks numerics losses ensemble averaging calibration knowledge models privacy config seeding "
    "optimisers flower_internals",
    "data metrics task",
    "learner",
    "strategy",
    "app",
    "engine __init__",  # fedkd itself may expose the engine's `simulate`
    "cli compare deploy formulas gains listings progress report report_template tables __main__",
)
FLOOR = {room: floor for floor, rooms in enumerate(_FLOORS) for room in rooms.split()}
STRATEGIES_SEE_UP_TO = FLOOR["strategy"]
REGISTRY = "fedkd/strategy/registry.py"

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

FLOWER_INTERNALS = "fedkd/flower_internals.py"
PUBLIC_FLOWER = {"flwr.app", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.clientapp", "flwr.clientapp.mod"}

UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "joblib.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
UNSAFE_KEYWORDS = {("weights_only", False), ("allow_pickle", True)}

# --- reading code


@dataclass(frozen=True)
class Import:
    """One imported name: ``from module import name``, or ``import module`` with an empty name."""

    line: int
    module: str
    name: str = ""

    @property
    def path(self) -> str:
        """The dotted path, name included."""
        return f"{self.module}.{self.name}".rstrip(".")


def modules(root: Path, *folders: str) -> Iterator[Path]:
    """Yield the Python files of some top-level folders, in order."""
    for folder in folders:
        yield from sorted((root / folder).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    """Parse one file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST) -> Iterator[Import]:
    """Yield every import at any depth; ``import_module("...")`` and the use of ``fedkd.<name>`` count as imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (Import(node.lineno, module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and _called(node) in {"import_module", "__import__"}:
            yield Import(node.lineno, _leading_text(node.args[0]))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fedkd":
            yield Import(node.lineno, "fedkd", node.attr)


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def _leading_text(node: ast.expr) -> str:
    """Return a string literal, or the text with which an f-string starts."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value.rstrip(".") if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def room_of(dotted: str) -> str | None:
    """Return the room of ``fedkd`` that an import enters; None if it enters none."""
    head, *rest = dotted.split(".")
    if head != "fedkd" or not rest or rest[0] in {"__version__", "__file__", "__path__"}:
        return None
    return rest[0] if rest[0] in FLOOR else "__init__"


# --- the checks


def floor_violations(root: Path) -> list[str]:
    """A room imports from its own floor without circles, or from below."""
    found: list[str] = []
    level: dict[str, set[str]] = {}
    for path in modules(root, "fedkd"):
        where = path.relative_to(root)
        room = where.with_suffix("").parts[1]
        if room not in FLOOR:
            found.append(f"{where}: room {room!r} is on no floor; add it to DESIGN and to the floors here")
            continue
        for item in imports(parse(path)):
            other = room_of(item.path)
            if other in {None, room}:
                continue
            if FLOOR[other] > FLOOR[room]:
                found.append(f"{where}:{item.line}: {room} (floor {FLOOR[room]}) imports {item.path} above it")
            elif FLOOR[other] == FLOOR[room]:
                level.setdefault(room, set()).add(other)
    return found + _circles(level)


def _circles(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [f"fedkd: rooms import each other in a circle: {' -> '.join(error.args[1])}"]
    return []


def strategy_violations(root: Path) -> list[str]:
    """A strategy imports fedkd up to floor 3 and no sibling; only the registry looks into strategies/."""
    found: list[str] = []
    for path in modules(root, *PACKAGES):
        where = path.relative_to(root)
        own = ".".join(where.with_suffix("").parts[:2])
        for item in imports(parse(path)):
            spot = f"{where}:{item.line}"
            room = room_of(item.path)
            if item.module.split(".")[0] == "strategies":
                if where.parts[0] == "fedkd" and where.as_posix() != REGISTRY:
                    found.append(f"{spot}: only {REGISTRY} may look into strategies/")
                elif where.parts[0] == "strategies" and not f"{item.path}.".startswith(f"{own}."):
                    found.append(f"{spot}: a strategy imports its sibling {item.path}; what two need moves to fedkd/")
            elif where.parts[0] == "strategies" and item.module.startswith("."):
                found.append(f"{spot}: a relative import may reach a sibling; import by full name")
            elif where.parts[0] == "strategies" and room and FLOOR[room] > STRATEGIES_SEE_UP_TO:
                found.append(f"{spot}: a strategy sees fedkd up to floor {STRATEGIES_SEE_UP_TO}, not {item.path}")
    return found


def size_violations(root: Path) -> list[str]:
    """Files and functions stay short."""
    found: list[str] = []
    for path in modules(root, *PACKAGES):
        where = path.relative_to(root)
        lines = line_count(path)
        if lines > MAX_FILE_LINES:
            found.append(f"{where}: {lines} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{where}:{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}")
    return found


def line_count(path: Path) -> int:
    """Return the number of lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def mirror_violations(root: Path) -> list[str]:
    """Every public module that defines something has a test file of the same path."""
    found: list[str] = []
    for path in modules(root, *PACKAGES):
        where = path.relative_to(root)
        if path.stem.startswith("_") or not _defines_something(path):
            continue
        folder = where.parent.relative_to("fedkd") if where.parts[0] == "fedkd" else where.parent
        mirror = Path("tests") / folder / f"test_{path.stem}.py"
        if not (root / mirror).is_file():
            found.append(f"{where}: no {mirror}")
    return found


def _defines_something(path: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in parse(path).body)


def flower_violations(root: Path) -> list[str]:
    """All contact with non-public Flower modules is in one file."""
    return [
        f"{where}:{item.line}: {item.path} is not public; use {FLOWER_INTERNALS}"
        for path in modules(root, *SHIPPED)
        if (where := path.relative_to(root)).as_posix() != FLOWER_INTERNALS
        for item in imports(parse(path))
        if item.module.split(".")[0] == "flwr" and not _is_public_flower(item)
    ]


def _is_public_flower(item: Import) -> bool:
    return not item.name.startswith("_") and bool({item.module, item.path} & PUBLIC_FLOWER)


def loader_violations(root: Path) -> list[str]:
    """Nothing that was stored or sent is ever executed."""
    found: list[str] = []
    for path in modules(root, *SHIPPED):
        where, tree = path.relative_to(root), parse(path)
        known = {
            alias.asname: alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.asname
        }
        for item in imports(tree):
            if item.module.split(".")[0] in UNSAFE_MODULES or item.path in UNSAFE_CALLS:
                found.append(f"{where}:{item.line}: unsafe import of {item.path}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                found += [f"{where}:{node.lineno}: unsafe {what}" for what in _unsafe_parts(node, known)]
    return found


def _unsafe_parts(call: ast.Call, known: dict[str, str]) -> Iterator[str]:
    head, dot, rest = ast.unparse(call.func).partition(".")
    name = known.get(head, head) + dot + rest
    if name in UNSAFE_CALLS:
        yield f"{name}()"
    for keyword in call.keywords:
        if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in UNSAFE_KEYWORDS:
            yield f"{keyword.arg}={keyword.value.value!r}"


def namespace_violations(root: Path) -> list[str]:
    """strategies/ is a namespace package, both packages are typed, and no method looks like a test file."""
    found = [f"{package}/py.typed is missing" for package in PACKAGES if not (root / package / "py.typed").is_file()]
    if (root / "strategies" / "__init__.py").exists():
        found.append("strategies/__init__.py must not exist: it would hide users' own strategies/")
    for path in modules(root, *PACKAGES):
        if re.fullmatch(r"test_.*|.*_test", path.stem):
            found.append(f"{path.relative_to(root)}: Flower leaves out of its bundle what is named like a test")
    return found


CHECKS: tuple[Callable[[Path], list[str]], ...] = (
    floor_violations,
    strategy_violations,
    size_violations,
    mirror_violations,
    flower_violations,
    loader_violations,
    namespace_violations,
)


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


def plant(root: Path, files: dict[str, str]) -> None:
    """Write a small tree."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


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


# --- tools


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, output captured."""
    full = {**os.environ, "NO_COLOR": "1", **environment}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=full, text=True, capture_output=True, check=False
    )


def assert_passes(done: subprocess.CompletedProcess[str]) -> None:
    """Fail with the command's own output."""
    if done.returncode:
        pytest.fail(
            f"{' '.join(done.args[:4])} ...: exit code {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False
        )


def test_ruff_is_content() -> None:
    assert_passes(run(sys.executable, "-m", "ruff", "check", "--output-format=concise", "."))


def test_mypy_is_content() -> None:
    assert_passes(run(sys.executable, "-m", "mypy", "--no-error-summary"))


_UNDOCUMENTED = '"""Doc."""\n\n\nclass Public:\n    """Doc."""\n\n    def method(self, x):\n        return x\n'


def test_ruff_asks_for_docstrings_and_annotations(tmp_path: Path) -> None:
    plant(tmp_path, {"fedkd/errors.py": _UNDOCUMENTED})
    done = run(
        sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", "--no-cache", ".", cwd=tmp_path
    )
    assert done.returncode == 1
    assert {"D102", "ANN001", "ANN201"} <= set(re.findall(r"\b(?:D|ANN)\d+", done.stdout))


def test_mypy_is_strict(tmp_path: Path) -> None:
    plant(tmp_path, {"fedkd/errors.py": _UNDOCUMENTED, "strategies/fd.py": "x: int = 'a'\n"})
    done = run(sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert {"no-untyped-def", "assignment"} <= set(re.findall(r"\[([\w-]+)\]", done.stdout))


def test_importing_fedkd_is_light() -> None:
    heavy = "[name for name in ('torch', 'flwr', 'ray', 'matplotlib') if name in sys.modules]"
    done = run(sys.executable, "-c", f"import sys, fedkd; print({heavy})")
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_ci_runs_the_readmes_test_command() -> None:
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert "python -m pytest" in command
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")


# --- wheel and FAB

_IMPORT_EVERYTHING = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root))
for path in sorted((root / "strategies").rglob("*.py")):
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__) == path, f"{name} came from {module.__file__}"
    print(name)
flower = importlib.import_module("fedkd.app.flower")
assert root in pathlib.Path(flower.__file__).parents and flower.server_app and flower.client_app
"""


@pytest.fixture
def copy_of_the_tree(tmp_path: Path) -> Path:
    """Return a copy without what runs and tools left behind."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "CHANGELOG.md", "constraints.txt"):
        shutil.copy(ROOT / name, copy)
    for folder in (*PACKAGES, "simulations"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def unpack_and_import(archive: Path, target: Path) -> set[str]:
    """Unpack a bundle and import every strategy from it, and Flower's entry points."""
    with zipfile.ZipFile(archive) as bundle:
        bundle.extractall(target)  # our own archive, just built
    done = run(sys.executable, "-W", "ignore", "-c", _IMPORT_EVERYTHING, target, cwd=target)
    assert_passes(done)
    return set(done.stdout.split())


def strategy_modules() -> set[str]:
    """Return the dotted names of the strategy modules in the tree."""
    return {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules(ROOT, "strategies")}


def test_the_wheel_holds_every_strategy(copy_of_the_tree: Path, tmp_path: Path) -> None:
    assert_passes(
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, cwd=copy_of_the_tree)
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert unpack_and_import(wheel, tmp_path / "wheel") == strategy_modules()
    assert all((tmp_path / "wheel" / package / "py.typed").is_file() for package in PACKAGES)


def test_the_fab_holds_every_strategy(copy_of_the_tree: Path, tmp_path: Path) -> None:
    before = (copy_of_the_tree / "pyproject.toml").read_bytes()
    flwr = Path(sys.executable).with_name("flwr")
    assert_passes(run(flwr, "build", "--app", copy_of_the_tree, cwd=tmp_path, FLWR_HOME=str(tmp_path / "home")))
    (fab,) = tmp_path.glob("*.fab")
    assert unpack_and_import(fab, tmp_path / "fab") == strategy_modules()
    assert (copy_of_the_tree / "pyproject.toml").read_bytes() == before


def test_the_version_is_the_packages() -> None:
    declared = re.search(r'^version = "(.+?)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert declared is not None
    assert importlib.import_module("fedkd").__version__ == declared.group(1)
