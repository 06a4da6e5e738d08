"""Who is there: nodes that go, and come back, while a run goes on.

A client is its name. Its node may be gone for some rounds, and come back under another of Flower's numbers: it is
greeted again, and takes part again if it says of itself what it said before round one.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from fedkd.app.history import RoundRecord
from fedkd.app.introduction import Said
from fedkd.app.roster import Answers, Participant, causes_in, named, two_of
from fedkd.app.told import TOLD
from fedkd.wording import brief, gist, last_line

NOT_THERE = "its node was not there when the round began"
"""Why a client that was drawn does not count."""
_MOST_TOLD = 1000
"""Reasons that are told: a node that fails in another way each time, or under another number, fills no memory."""
NOBODY = 0
"""Number of no node: that of a client that has not come back since the server began anew."""


@dataclass
class Presence:
    """What a server knows of the nodes on its grid, beside who is on the roster.

    Attributes:
        absent: keys of the clients whose node is not there, or has not been greeted since it came back.
        asked: nodes that have not answered a hello yet.
        turned_away: nodes that are none of this run's; they are asked again only when they were gone.
        told: why nodes did not do, as they were told of: each node's reason once, by node and gist of the reason.
        outside: why nodes are none of this run's, and which: those that the first hello refused, and strangers.
        unfit: nodes whose answers did not do since the last round began, and why.
    """

    absent: set[str] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    turned_away: set[int] = field(default_factory=set)
    told: dict[tuple[int, str], str] = field(default_factory=dict)
    outside: dict[str, frozenset[int]] = field(default_factory=dict)
    unfit: set[tuple[int, str]] = field(default_factory=set)


def greeted(answers: Answers, roster: Mapping[str, Participant]) -> Presence:
    """Return what a server knows after its first hello."""
    taken = _taken(Presence(), roster)
    refused = {node for node, _ in answers.refused} - answers.failed
    told = {(node, gist(reason)): f"{named([node])}: {reason}" for node, reason in answers.refused}
    return Presence(turned_away=(set(answers.nodes) | refused) - taken, told=told, outside=causes_in(answers))


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
        TOLD.warning("is not there: %s", key)
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
    changed = dict(roster)
    for node, said in found.items():
        key = said.card.key
        nodes = {other for other, who in found.items() if who.card.key == key} | (_nodes_of(key, roster) & taken)
        reason = _problem(said, changed.get(key), nodes)
        if reason:
            _refuse(presence, node, reason)
            if key not in changed:
                presence.turned_away.add(node)
                if len(presence.outside) < _MOST_TOLD:
                    presence.outside[reason] = frozenset([node])  # once, whatever number it comes under
            continue
        changed[key] = replace(changed[key], node_id=node)
        presence.absent.discard(key)
        TOLD.info("takes part again: %s  (%s)", key, named([node]))
    presence.asked -= {*answers.nodes, *(node for node, _ in answers.refused)}
    return changed


def _taken(presence: Presence, roster: Mapping[str, Participant]) -> set[int]:
    """Return the nodes at which clients take part."""
    return {participant.node_id for key, participant in roster.items() if key not in presence.absent}


def _nodes_of(key: str, roster: Mapping[str, Participant]) -> set[int]:
    return {roster[key].node_id} if key in roster else set()


def _problem(said: Said, known: Participant | None, nodes: Collection[int]) -> str:
    """Return why a node is not the client that it says it is, as these nodes do; nothing if it is."""
    key = said.card.key
    if known is None:
        return f"{key}: expected a client of this run, which began without it; it can take part in the next run"
    if len(nodes) > 1:
        return two_of(key, sorted(nodes))
    for name in (part.name for part in fields(Said)):
        before, now = getattr(known.said, name), getattr(said, name)
        if before != now:
            expected = f"expected what it said before round one, {before!r:.200}"
            return f"{key}: {name.replace('_', ' ')}: {expected}, found {now!r:.200}; give it back its samples"
    return ""


def _refuse(presence: Presence, node: int, reason: str, *, counted: bool = True) -> None:
    line = f"{named([node])}: {reason}"
    if (node, gist(reason)) not in presence.told and len(presence.told) < _MOST_TOLD:
        presence.told[node, gist(reason)] = line
        TOLD.warning("a client takes no part: %s", line)
    if counted:
        presence.unfit.add((node, reason))


def took_no_part(
    presence: Presence, roster: Mapping[str, Participant], records: Sequence[RoundRecord], clients: int
) -> list[str]:
    """Return a line about each client of which no round has counted a reply, as far as it is known.

    Args:
        presence: at the end of the run.
        roster: who takes part, by client key.
        records: of all rounds.
        clients: of the federation.
    """
    failed = {key: reason for record in records for key, reason in record.failed.items()}
    counted = {key for record in records for key in record.participants}
    lines = [
        *map(brief, presence.outside),
        *(f"{key}: {last_line(failed[key])}" for key in sorted(failed.keys() - counted)),
    ]
    missing = clients - len(roster) - len(frozenset().union(*presence.outside.values()))
    return [*lines, f"{missing}{' more' if lines else ''} of {clients} clients"] if missing > 0 else lines
