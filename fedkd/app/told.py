"""What an operator is told while a run goes on: who takes part, who does not, and why; and why it has failed."""

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fedkd.errors import RunError, UserError
from fedkd.wording import brief

TOLD = logging.getLogger("fedkd.told")
"""The part of our log that a far-away operator also reads, each record as one line."""


@contextmanager
def telling(announce: Callable[[str, Mapping[str, Any]], None]) -> Iterator[None]:
    """Announce what is written to :data:`TOLD`, as one line each, and why the run fails if it does."""
    handler = _Telling(announce)
    TOLD.addHandler(handler)
    try:
        yield
    except (UserError, RunError) as error:
        announce("failed", {"text": str(error), "mistake": isinstance(error, UserError)})
        raise
    except Exception:
        announce("failed", {"text": traceback.format_exc().strip()})
        raise
    finally:
        TOLD.removeHandler(handler)


class _Telling(logging.Handler):
    """Announces records, with numbers by which a reader knows those that it has read."""

    def __init__(self, announce: Callable[[str, Mapping[str, Any]], None]) -> None:
        super().__init__()
        self._announce, self._count = announce, 0

    def emit(self, record: logging.LogRecord) -> None:
        self._count += 1
        self._announce("told", {"number": self._count, "text": brief(record.getMessage())})
