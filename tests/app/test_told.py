"""What an operator is told: one line at a time, and why a run has failed."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from fedkd.app.told import TOLD, telling
from fedkd.errors import RunError, UserError


@pytest.fixture
def said() -> list[tuple[str, Mapping[str, Any]]]:
    return []


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    log = logging.getLogger("fedkd")
    before = log.level
    log.setLevel(logging.INFO)
    yield
    log.setLevel(before)


def test_what_is_told_is_numbered_and_announced_while_it_lasts(said: list[tuple[str, Mapping[str, Any]]]) -> None:
    with telling(lambda kind, values: said.append((kind, values))):
        TOLD.info("takes part: %s", "client-0")
        TOLD.warning("is not there: client-0")
        logging.getLogger("fedkd").warning("a word to the log alone")
    TOLD.warning("too late")

    assert said == [
        ("told", {"number": 1, "text": "takes part: client-0"}),
        ("told", {"number": 2, "text": "is not there: client-0"}),
    ]


def test_a_traceback_is_told_by_its_last_line_and_logged_in_full(
    said: list[tuple[str, Mapping[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    text = "node 7: it could not say who it is:\nTraceback (most recent call last):\n  File\nImportError: no torch\n"
    with telling(lambda kind, values: said.append((kind, values))):
        TOLD.warning("%s", text)

    assert [values["text"] for _, values in said] == ["node 7: it could not say who it is: ImportError: no torch"]
    assert caplog.messages == [text]


@pytest.mark.parametrize("error", [RunError("no client can take part.\nnode 7: code"), UserError("data: none")])
def test_a_failure_of_ours_is_announced_without_a_traceback(
    error: Exception, said: list[tuple[str, Mapping[str, Any]]]
) -> None:
    with pytest.raises(type(error)), telling(lambda kind, values: said.append((kind, values))):
        raise error

    assert said == [("failed", {"text": str(error), "mistake": isinstance(error, UserError)})]


def test_any_other_failure_is_announced_with_its_traceback(said: list[tuple[str, Mapping[str, Any]]]) -> None:
    with pytest.raises(ZeroDivisionError), telling(lambda kind, values: said.append((kind, values))):
        _ = 1 / 0

    [(kind, values)] = said
    assert kind == "failed"
    assert values["text"].startswith("Traceback (most recent call last):\n")
    assert values["text"].endswith("\nZeroDivisionError: division by zero")
