"""The rules of the house: floors, sizes, mirror tests, public doors only.

A check is a function from a root folder to a list of violations, so that it can be shown to fail on a bad tree.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fedkd", "strategies")
SHIPPED = (*PACKAGES, "simulations", "benchmarks")

_FLOORS = (
    "errors wording checks numerics losses ensemble averaging calibration knowledge models privacy config seeding "
    "optimisers flower_internals torch_internals",
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
