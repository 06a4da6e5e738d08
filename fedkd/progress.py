"""Progress for people: a bar on a terminal, one line per round elsewhere; always on standard error."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedkd.app.history import Metrics, RoundRecord
from fedkd.wording import first_of, last_line


class RoundProgress:
    """Shows the rounds of one run, or of several runs one after the other.

    Args:
        names: strategies, in the order in which they run.
        rounds: number of rounds of each.
        done: rounds that are done already.
    """

    def __init__(self, names: list[str], rounds: int, done: int = 0) -> None:
        """Prepare a bar for the first strategy."""
        self._names, self._rounds = names, rounds
        self._done = done
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Show the bar."""
        self._progress.start()
        self._bar(self._names[0])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()

    def advance(self, record: RoundRecord) -> None:
        """Count one finished round."""
        name = self._names[min(self._done // self._rounds, len(self._names) - 1)]
        self._done += 1
        said, lost = f"{name}  {_headline(record.metrics)}".rstrip(), _lost(record.failed)
        self._progress.update(self._bar(name), advance=1, description=said)
        if not self._console.is_terminal:
            self.tell("  ".join(filter(None, [f"round {record.round}  {record.seconds:.1f} s  {said}", lost])))
        elif lost:
            self.tell(f"round {record.round}  {lost}")

    def tell(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        self._console.print(line, markup=False)

    def _bar(self, name: str) -> TaskID:
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=self._rounds, completed=self._done % self._rounds)
        return self._bars[name]


def _lost(failed: Mapping[str, str]) -> str:
    """Return which clients failed, and of what."""
    if not failed:
        return ""
    clients = [f"{key} ({last_line(reason, 160) or 'no reason given'})" for key, reason in sorted(failed.items())]
    return f"{len(clients)} client{'s' if len(clients) > 1 else ''} failed: {first_of(clients)}"


def _headline(metrics: Metrics | None) -> str:
    """Accuracies in a few words, whichever there are."""
    shown = (("clients", "clients_global"), ("ensemble", "ensemble_global"), ("server", "server_global"))
    scores = [(word, (metrics or {}).get(key)) for word, key in shown]
    return "  ".join(f"{word} {100 * score['accuracy']:.1f} %" for word, score in scores if score)
