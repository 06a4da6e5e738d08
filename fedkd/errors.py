"""The two ways a run can end early: a user's mistake, or a failed run."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what the user gave: one line that says what, where, expected, found and what to do.

    The command line prints the line without a traceback and exits with code 2.
    """


class RunError(RuntimeError):
    """A run that could not go on; the command line prints it and exits with code 1."""


class InterruptedRunError(Exception):
    """A run that was told to stop; the command line prints where its results are and exits with code 130."""


class LostSightError(RunError):
    """A run of which nobody answers any more, and which may go on; the command line exits with code 3."""


def unknown(what: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """Build the error for a name that does not exist, with the nearest names that do.

    Args:
        what: kind of thing looked for, such as ``"strategy"``.
        name: the name that was given.
        known: the names that exist.
        where: file or key that held the name; empty if there is none.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> print(unknown("strategy", "fedmb", ["fedmd", "local"]))
        unknown strategy 'fedmb': did you mean 'fedmd'? Known: fedmd, local.
    """
    names = sorted(known)
    lowered = {known_name.lower(): known_name for known_name in names}
    close = get_close_matches(name, names, n=1) or [
        lowered[near] for near in get_close_matches(name.lower(), lowered, n=1)
    ]
    hint = f"did you mean {close[0]!r}? " if close else ""
    place = f"{where}: " if where else ""
    return UserError(f"{place}unknown {what} {name!r}: {hint}Known: {', '.join(names) or 'none'}.")


def last_line(text: str, most: int = 300) -> str:
    """Return the last line of a text, which of a traceback says most.

    Args:
        text: a reason, be it another machine's: what no terminal should be told is left out.
        most: characters that are kept.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    return printable(lines[-1].strip(), most) if lines else ""


def brief(text: str) -> str:
    """Return a text of several lines as one: the first, and the last, which of a traceback says most."""
    first, _, rest = text.strip().partition("\n")
    return " ".join(filter(None, [printable(first, 600), last_line(rest)]))


def printable(text: str, most: int) -> str:
    """Return a text without characters that a terminal obeys, cut at so many characters."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def first_of(names: Sequence[str], most: int = 3) -> str:
    """Return the first few names, and how many more there are.

    Example:
        >>> first_of(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def gist(reason: str) -> str:
    """Return what reasons that are told once have in common: the last line, as files lie elsewhere on each machine."""
    return last_line(reason, len(reason) + 1)
