"""How a strategy is found: built-in or in the user's own ``strategies/`` folder by name, or as ``module:Class``.

``strategies`` is a namespace package: a folder of that name in the working directory is merged with the built-in one,
and no strategy has a privilege.
"""

import importlib
import sys
import traceback
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from fedkd.config import Experiment, validate
from fedkd.errors import UserError, unknown
from fedkd.strategy.base import MethodCard, Strategy

PACKAGE = "strategies"


def create(experiment: Experiment) -> Strategy:
    """Build the experiment's strategy with its settings.

    Raises:
        UserError: there is no such strategy, its module fails to import, or a setting is wrong.
    """
    strategy = find(experiment.strategy)
    tables: Mapping[str, Mapping[str, Any]] = {experiment.strategy: {}, **experiment.strategies}
    for name in tables:
        if ":" not in name and name not in names():
            raise unknown("strategy", name, names(), where="strategies")
    # Those of strategies that do not run are checked too: a typing error must not wait for the comparison.
    settings = {
        name: validate(find(name).Settings, values, where=f"strategies.{name}") for name, values in tables.items()
    }
    return strategy(settings[experiment.strategy]).sealed()


def complete(experiment: Experiment) -> Experiment:
    """Return the same experiment with all settings of its strategy written out, the defaults among them.

    Raises:
        UserError: see :func:`create`.
    """
    settings = create(experiment).settings.model_dump(mode="json", exclude_none=True)
    return experiment.model_copy(update={"strategies": {**experiment.strategies, experiment.strategy: settings}})


def find(name: str) -> type[Strategy]:
    """Return a strategy's class.

    Args:
        name: a name from :func:`names`, or an object reference ``package.module:Class``.

    Raises:
        UserError: there is no such strategy, its module fails to import, or its class is unfinished.
    """
    _see_working_directory()
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        found = getattr(_import(module_name), class_name, None)
        if not (isinstance(found, type) and issubclass(found, Strategy)):
            raise UserError(
                f"strategy {name!r}: expected a class derived from fedkd.strategy.Strategy, found {found!r}."
            )
        return _finished(found)
    if name not in names():
        raise unknown("strategy", name, names(), own="package.module:Class")
    return _finished(_only_strategy(_import(f"{PACKAGE}.{name}")))


def names() -> dict[str, Path]:
    """Return all strategies with their files, built-in and in the working directory, in sorted order.

    Raises:
        UserError: two files claim one name, or a ``strategies`` package with ``__init__.py`` hides the others.
    """
    found: dict[str, Path] = {}
    for folder in _folders():
        for path in sorted(folder.glob("*.py")):
            if path.stem.startswith("_"):
                continue
            other = found.setdefault(path.stem, path)
            if other.read_bytes() != path.read_bytes():
                raise UserError(
                    f"strategy {path.stem!r}: expected one file, found {other} and {path}, which differ; rename one."
                )
    return dict(sorted(found.items()))


def _folders() -> list[Path]:
    _see_working_directory()
    importlib.invalidate_caches()  # a folder may have appeared since the last look
    spec = PathFinder.find_spec(PACKAGE)  # afresh: a package that was imported before would hide what is there now
    if spec is None or spec.submodule_search_locations is None or spec.origin is not None:
        found = "found none" if spec is None else f"found {spec.origin}, which hides all others; remove it"
        raise UserError(f"strategies: expected a folder without __init__.py, {found}.")
    return [Path(entry) for entry in spec.submodule_search_locations]


def _see_working_directory() -> None:
    """Let modules in the working directory be found, after all others: none of them can take another's place."""
    working_directory = str(Path.cwd())
    if working_directory not in sys.path:
        sys.path.append(working_directory)


def _import(module_name: str) -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if isinstance(error, SyntaxError) else f" ({last.filename}, line {last.lineno})"
        raise UserError(
            f"strategy module {module_name!r}: could not be imported: {type(error).__name__}: {error}{place}."
        ) from error


def _only_strategy(module: Any) -> type[Strategy]:  # noqa: ANN401
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Strategy) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise UserError(f"{module.__file__}: expected exactly one class derived from Strategy, found {len(classes)}.")
    return classes[0]


def _finished(strategy: type[Strategy]) -> type[Strategy]:
    """Refuse a class that could not be run."""
    where = f"strategy {strategy.__module__}:{strategy.__qualname__}"
    if missing := sorted(strategy.__abstractmethods__):
        raise UserError(f"{where}: expected both halves of a method, found no {' and no '.join(missing)}; write them.")
    if not isinstance(getattr(strategy, "card", None), MethodCard):
        raise UserError(f"{where}: expected its method card, found none; write card = MethodCard(...).")
    return strategy
