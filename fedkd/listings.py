"""What there is to choose from, as plain rows: the source of ``fedkd list`` and of the tables in the documentation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fedkd.config import Experiment
from fedkd.errors import UserError
from fedkd.strategy.base import Payload

COLUMNS = {
    "strategies": ("name", "up", "down", "needs", "traffic", "paper"),
    "models": ("name", "description"),
    "data": ("name", "description"),
    "codecs": ("example", "payloads", "description"),
    "settings": ("key", "default", "meaning"),
    "losses": ("family", "name", "formula"),
    "transforms": ("example", "meaning"),
}
Row = dict[str, Any]


def listing(what: str) -> list[Row]:
    """Return what can be named.

    Args:
        what: ``strategies``, ``models``, ``data``, ``codecs``, ``settings``, ``losses`` or ``transforms``.
    """
    if what == "strategies":
        from fedkd.strategy.registry import names as strategy_names

        return [_strategy(name) for name in strategy_names()]
    if what == "settings":
        return [*_settings("", Experiment), *_strategy_settings()]
    if what == "codecs":
        from fedkd.knowledge.codecs import CODECS, payloads_suited

        return [
            {
                "name": name,
                "example": entry.example,
                "payloads": payloads_suited(name),
                "description": entry.description,
            }
            for name, entry in CODECS.items()
        ]
    if what == "transforms":
        from fedkd.data.transforms import TRANSFORMS

        return [
            {"name": name or "size", "example": f"@{entry.example}", "meaning": entry.meaning}
            for name, entry in TRANSFORMS.items()
        ]
    if what == "losses":
        from fedkd.formulas import formulas

        return [*formulas()]
    if what == "models":
        from fedkd.models import names as described
    else:
        from fedkd.data.sources import names as described
    return [{"name": name, "description": text} for name, text in described().items()]


def cells(what: str, row: Mapping[str, Any]) -> list[str]:
    """Return a row's cells in the order of the columns; one that is an error shows the error."""
    texts = {**row, "default": _shown(row.get("default"))}
    return [str(texts.get(column, row.get("error", ""))) for column in COLUMNS[what]]


def to_markdown(what: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a listing as a Markdown table; that of the losses, whose cells are long, as sections."""
    if what == "losses":
        from fedkd.formulas import to_markdown as sections

        return sections(rows)
    lines = [COLUMNS[what], ["---"] * len(COLUMNS[what]), *(cells(what, row) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _strategy(name: str) -> Row:
    """Describe one strategy; one that cannot be imported is reported, not fatal."""
    from fedkd.strategy.registry import find

    try:
        card = find(name).card
    except UserError as error:
        return {"name": name, "error": str(error)}
    needs = {
        "public set": card.needs_public_set and not card.needs_public_labels,
        "labelled public set": card.needs_public_labels,
        "one architecture": not card.heterogeneous_models,
        "server training": card.server_training,
        "simulation": card.simulation_only,
    }
    reference = f", arXiv:{card.arxiv}" if card.arxiv else ""
    return {
        "name": name,
        "up": _kind(card.up),
        "down": _kind(card.down),
        "needs": ", ".join(need for need, given in needs.items() if given) or "–",
        "traffic": card.traffic or ("0" if card.up is None and card.down is None else "–"),
        "paper": card.title if card.authors == "-" else f"{card.authors} {card.year}{reference}",
        "title": card.title,
        "deviations": list(card.deviations),
    }


def _kind(payload: Payload | None) -> str:
    if isinstance(payload, Mapping):
        return " + ".join(kind.__name__ for kind in payload.values())
    return payload.__name__ if payload else "–"


def _strategy_settings() -> Iterator[Row]:
    from fedkd.strategy.registry import find, names

    for name in names():
        try:
            yield from _settings(f"strategies.{name}.", find(name).Settings)
        except UserError:
            continue  # `fedkd list strategies` says why


def _settings(prefix: str, schema: type[BaseModel]) -> Iterator[Row]:
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(f"{prefix}{name}.", kind)
        else:
            yield {"key": f"{prefix}{name}", "default": field.get_default(), "meaning": _meaning(field)}


def _meaning(field: FieldInfo) -> str:
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    listed = f" ({', '.join(choices)})" if choices else ""
    return f"{field.description or ''}{listed}"


def _shown(value: Any) -> str:  # noqa: ANN401 - a settings value of any type
    if value is None or value is PydanticUndefined:
        return "–"
    value = list(value) if isinstance(value, tuple) else value
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
