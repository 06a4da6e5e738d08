"""The ways in which a run can end early: a user's mistake, a failure, an interrupt, or out of sight."""

from collections.abc import Iterable
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


def unknown(what: str, name: str, known: Iterable[str], where: str = "", own: str = "") -> UserError:
    """Build the error for a name that does not exist, with the nearest names that do.

    Args:
        what: kind of thing looked for, such as ``"strategy"``.
        name: the name that was given.
        known: the names that exist.
        where: file or key that held the name; empty if there is none.
        own: how something of the user's own is named; empty if there is no such thing.

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
    instead = f"; your own: {own}" if own else ""
    return UserError(f"{place}unknown {what} {name!r}: {hint}Known: {', '.join(names) or 'none'}{instead}.")
