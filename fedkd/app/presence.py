"""Who is there: nodes that go, and come back, while a run goes on.

A client is its name. Its node may be gone for some rounds, and come back under another of Flower's numbers: it is
greeted again, and takes part again if it says of itself what it said before round one.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

from fedkd.app.introduction import Said
from fedkd.app.roster import Answers, Participant, two_of

LOG = logging.getLogger("fedkd")
NOT_THERE = "its node was not there when the round began"
"""Why a client that was drawn does not count."""
NOBODY = 0
"""Number of no node: that of a client that has not come back since the server began anew."""


@dataclass
class Presence:
    """What a server knows of the nodes on its grid, beside who is on the roster.

    Attributes:
        absent: keys of the clients whose node is not there, or has not been greeted since it came back.
        asked: nodes that have not answered a hello yet.
        turned_away: nodes that are none of this run's; they are asked again only when they were gone.
        told: why nodes take no part; each reason is told once.
        unfit: nodes whose answers did not do since the last round began, and why.
    """

    absent: set[str] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    turned_away: set[int] = field(default_factory=set)
    told: dict[str, None] = field(default_factory=dict)
    unfit: set[tuple[int, str]] = field(default_factory=set)


def greeted(answers: Answers, roster: Mapping[str, Participant]) -> Presence:
    """Return what a server knows after its first hello."""
    taken = _taken(Presence(), roster)
    refused = {node for node, _ in answers.refused} - answers.failed
    told = dict.fromkeys(reason for _, reason in answers.refused)
    return Presence(turned_away=(set(answers.nodes) | refused) - taken, told=told)


def look(presence: Presence, roster: Mapping[str, Participant], node_ids: Iterable[int]) -> list[int]:
    """Note which clients' nodes are not there, and return the nodes that are to be greeted.

    Args:
        presence: changed in place.
        roster: who takes part, by client key.
        node_ids: the nodes on the grid.
    """
    there = set(node_ids)
    gone = {key for key, participant in roster.items() if participant.node_id not in there} - presence.absent
    for key in sorted(gone):
        LOG.warning("is not there: %s", key)
    presence.absent |= gone
    presence.asked &= there
    presence.turned_away &= there
    return sorted(there - _taken(presence, roster) - presence.turned_away)


def take_back(presence: Presence, roster: Mapping[str, Participant], answers: Answers) -> dict[str, Participant]:
    """Return the roster, with the nodes at which absent clients have come back.

    Args:
        presence: changed in place.
        roster: who takes part, by client key.
        answers: to a hello of this run.
    """
    taken = _taken(presence, roster)  # they were asked twice, and have answered twice
    for node, reason in answers.refused:
        if node not in taken:
            _refuse(presence, node, reason, counted=node not in answers.failed)
    found = {node: said for node, said in sorted(answers.nodes.items()) if node not in taken}
    names = Counter(said.card.key for said in found.values())
    changed = dict(roster)
    for node, said in found.items():
        key = said.card.key
        reason = _problem(said, changed.get(key), key in presence.absent, names[key])
        if reason:
            _refuse(presence, node, reason)
            presence.turned_away |= set() if key in changed else {node}
            continue
        changed[key] = replace(changed[key], node_id=node)
        presence.absent.discard(key)
        LOG.info("takes part again: %s", key)
    presence.asked -= {*answers.nodes, *(node for node, _ in answers.refused)}
    return changed


def _taken(presence: Presence, roster: Mapping[str, Participant]) -> set[int]:
    """Return the nodes at which clients take part."""
    return {participant.node_id for key, participant in roster.items() if key not in presence.absent}


def _problem(said: Said, known: Participant | None, is_absent: bool, count: int) -> str:
    """Return why a node is not the client that it says it is; nothing if it is."""
    key = said.card.key
    if known is None:
        return f"{key}: expected a client of this run, which began without it; it can take part in the next run"
    if count > 1:
        return two_of(key, count)
    if not is_absent:
        return two_of(key, 2)
    for name in (part.name for part in fields(Said)):
        before, now = getattr(known.said, name), getattr(said, name)
        if before != now:
            expected = f"expected what it said before round one, {before!r:.200}"
            return f"{key}: {name.replace('_', ' ')}: {expected}, found {now!r:.200}; give it back its samples"
    return ""


def _refuse(presence: Presence, node: int, reason: str, *, counted: bool = True) -> None:
    if reason not in presence.told:
        presence.told[reason] = None
        LOG.warning("a client takes no part: %s", reason)
    if counted:
        presence.unfit.add((node, reason))
