"""Every loss, rule and measure with its formula, as its docstring has it: the source of ``docs/losses.md``.

A docstring says in paragraphs of their own what is computed (``Formula:``), whose it is (``Source:``), and what other
code computes under the same name (``Elsewhere:``).
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any

from fedkd import calibration, ensemble, losses

SECTIONS = ("Formula", "Source", "Elsewhere")

FAMILIES = (
    *(f"losses.{name}" for name in ("response", "decoupled", "standardized", "labels", "feature", "feature_maps")),
    *(f"losses.{name}" for name in ("relation", "graph", "information", "online", "ranking", "data_free")),
    *(f"ensemble.{name}" for name in ("mean", "weighted", "robust", "geometric", "class_wise", "stream")),
    *(f"calibration.{name}" for name in ("bins", "fit", "scores")),
)
"""Modules in the order of the list, by the field's taxonomy."""


def formulas() -> list[dict[str, str]]:
    """Return a row for every public function of the three packages, and for every class with a formula."""
    offered = [value for package in (losses, ensemble, calibration) for value in vars(package).values()]
    rows = [_row(value) for value in offered if inspect.isfunction(value) or inspect.isclass(value)]
    listed = [row for row in rows if row["family"] in FAMILIES and (row["formula"] or row["kind"] == "function")]
    return sorted(listed, key=lambda row: FAMILIES.index(row["family"]))


def to_markdown(rows: Iterable[Mapping[str, str]]) -> str:
    """Return rows as one section for each family, with one entry for each function."""
    sections = []
    for family, members in groupby(rows, lambda row: row["family"]):
        title = _paragraphs(sys.modules[f"fedkd.{family}"])[0]
        sections += [f"## fedkd.{family}", title, *(_entry(row) for row in members)]
    return "\n\n".join(sections)


def _entry(row: Mapping[str, str]) -> str:
    facts = [f"- {section}: {row[section.lower()]}" for section in SECTIONS if row[section.lower()]]
    return "\n".join([f"### {row['name']}", "", f"`{row['signature']}`  ", row["summary"], "", *facts])


def _row(value: Callable[..., Any]) -> dict[str, str]:
    paragraphs = _paragraphs(value)
    found = {section.lower(): _section(section, paragraphs) for section in SECTIONS}
    return {
        "family": value.__module__.removeprefix("fedkd."),
        "kind": "class" if inspect.isclass(value) else "function",
        "name": value.__name__,
        "signature": _signature(value),
        "summary": paragraphs[0],
        **found,
    }


def _paragraphs(value: Any) -> list[str]:  # noqa: ANN401 - a module, a class or a function
    """Return the paragraphs of a docstring in Markdown, each on one line."""
    text = re.sub(r":\w+:`(?:fedkd\.\w+\.)?([^`]+)`", r"`\1`", inspect.getdoc(value) or "").replace("``", "`")
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def _section(name: str, paragraphs: Iterable[str]) -> str:
    start = f"{name}: "
    return next((paragraph.removeprefix(start) for paragraph in paragraphs if paragraph.startswith(start)), "")


def _signature(value: Callable[..., Any]) -> str:
    """Return a call with names and defaults, without annotations."""
    signature = inspect.signature(value)
    parameters = [
        parameter.replace(annotation=parameter.empty, default=_default(parameter.default))
        for parameter in signature.parameters.values()
    ]
    return f"{value.__name__}{signature.replace(parameters=parameters, return_annotation=signature.empty)}"


def _default(value: Any) -> Any:  # noqa: ANN401 - a default of any type
    return _Name(value.__name__) if inspect.isfunction(value) else value


class _Name(str):
    """Text that is shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__
