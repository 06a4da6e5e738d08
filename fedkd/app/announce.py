"""How a server tells a far-away operator what comes out: by lines in the run's log, which Flower carries.

Clients' words are in that log too. So a server begins with a mark that it draws before it asks anybody anything, and
only lines that start with it count: words that look like an announcement by accident are none. It is no protection
against a client that means harm: the log is open to whoever reaches the SuperLink (decision 13), and shows the mark.
"""

import json
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedkd.app.run_folder import CLIENTS, MANIFEST, SUMMARY, read_lines

Announce = Callable[[str, Mapping[str, Any]], None]
_BEGIN = re.compile(r"^fedkd reports under ([0-9a-f]{16})$", re.MULTILINE)


def announcer(write: Callable[[str], Any] | None = None) -> Announce:
    """Begin to announce; return a function that writes one JSON object of a kind, such as ``round``.

    Args:
        write: takes whole lines; standard error without.
    """
    say = sys.stderr.write if write is None else write
    mark = secrets.token_hex(8)
    say(f"fedkd reports under {mark}\n")

    def announce(kind: str, values: Mapping[str, Any]) -> None:
        say(f"{mark} {kind} {json.dumps(values)}\n")

    return announce


def nothing_announced(kind: str, values: Mapping[str, Any]) -> None:
    """Announce nothing: who has asked for the run has its folder."""


def announce_end(announce: Announce, folder: Path) -> None:
    """Announce what a finished run's folder holds beside its rounds, and last of all the summary."""
    announce("manifest", json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    for client in read_lines(folder / CLIENTS):
        announce("client", client)
    announce("summary", json.loads((folder / SUMMARY).read_text(encoding="utf-8")))


def is_announcement(line: str) -> bool:
    """Whether a line looks like an announcement, whoever has written it."""
    return re.match(r"[0-9a-f]{16} \w+ \{|fedkd reports under ", line) is not None


def announced(log: str) -> dict[str, list[dict[str, Any]]]:
    """Return what was announced in a log, by kind (see :func:`announcements`)."""
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, values in announcements(log):
        found.setdefault(kind, []).append(values)
    return found


def announcements(log: str) -> list[tuple[str, dict[str, Any]]]:
    """Return what was announced in a log, kind and values, in order; a line that is not complete yet is left out."""
    begin = _BEGIN.search(log)
    if begin is None:
        return []
    found = re.findall(rf"^{begin[1]} (\w+) (\{{.*\}})\n", log[begin.end() :], re.MULTILINE)
    return [(kind, json.loads(text)) for kind, text in found]
