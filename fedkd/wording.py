"""Words for people, made of what machines say: cut, on one line, and without what a terminal obeys."""

import os
import re
import sysconfig
import traceback
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from types import CodeType

_FOLDERS = (str(Path(__file__).parent), *(str(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")))
_OURS = f"{Path(__file__).parent.resolve()}{os.sep}"
_NOT_THE_USERS = tuple(f"{Path(folder).resolve()}{os.sep}" for folder in _FOLDERS)
"""Folders of our own code, of Python's and of libraries."""


def last_line(text: str, most: int = 300) -> str:
    """Return the last line of a text, which of a traceback says most.

    Args:
        text: a reason, be it another machine's: what no terminal should be told is left out.
        most: characters that are kept.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    return printable(lines[-1].strip(), most) if lines else ""


def traceback_of(error: BaseException) -> str:
    """Return an error's traceback without the frames, ours and libraries', above the user's first one.

    All of it if the user has none, such as in a strategy that was installed; and nothing but what the error says if it
    comes from a check of ours, as when a half of a strategy returns something else than its card says.
    """
    frames = first = last = error.__traceback__
    while first is not None and first.tb_frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        last, first = first, first.tb_next
    if first is None and last is not None and _is_check(last.tb_frame.f_code):
        return "".join(traceback.format_exception_only(error))
    return "".join(traceback.format_exception(type(error), error, first or frames))


def _is_check(code: CodeType) -> bool:
    return code.co_filename.startswith(_OURS) and code.co_name.lstrip("_").startswith("expect")


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


def where_they_differ(mine: str, theirs: str, most: int = 80) -> tuple[str, str]:
    """Return two texts, cut so that what differs is still seen; of digests the first eight digits.

    Example:
        >>> where_they_differ("0123456789ab", "0123456789cd", most=8)
        ('...6789ab', '...6789cd')
    """
    if all(re.fullmatch(r"'[0-9a-f]{64}'", text) for text in (mine, theirs)) and mine[:9] != theirs[:9]:
        return f"{mine[:9]}...'", f"{theirs[:9]}...'"
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mine, theirs, strict=False)))
    start = 0 if alike < most // 2 else alike - most // 2

    def cut(text: str) -> str:
        return f"{'...' if start else ''}{text[start : start + most]}"

    return cut(mine), cut(theirs)
