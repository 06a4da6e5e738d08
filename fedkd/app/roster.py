"""Who takes part: what the clients say of themselves before round one."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, RecordDict

from fedkd.app.history import ClientRecord
from fedkd.app.introduction import Said, expect_said, introduction, read_introduction
from fedkd.app.told import TOLD
from fedkd.app.wire import COMMON, HEADER, SEAL, Header, expect_records, expect_sealed, header_of, reason_in
from fedkd.data.federation import Federation
from fedkd.errors import RunError
from fedkd.knowledge import KnowledgeError
from fedkd.learner.base import card_of
from fedkd.learner.model import below
from fedkd.strategy import Strategy
from fedkd.wording import first_of, gist


@dataclass(frozen=True)
class Participant:
    """One client of the federation.

    Attributes:
        said: what it has said of itself before round one; without models it takes part in no round.
        node_id: Flower's number of its node, random in a deployment: never used for anything but addressing.
    """

    said: Said
    node_id: int

    def record(self, scores: Mapping[str, float]) -> ClientRecord:
        """Return the client's record, given scores named ``global/accuracy``, ``local/nll``, ..."""
        global_, local = (below(scores, prefix) for prefix in ("global/", "local/"))
        said, card = self.said, self.said.card
        return ClientRecord(
            card.key,
            card.architecture,
            card.view,
            card.num_samples,
            said.missing,
            said.label_counts,
            global_,
            local or None,
        )


@dataclass(frozen=True)
class Answers:
    """What nodes answered to the server's hello.

    Attributes:
        nodes: what they say of themselves, by node.
        refused: nodes whose answers will not do, and why.
        failed: those of them that gave no answer but an error.
    """

    nodes: Mapping[int, Said]
    refused: Sequence[tuple[int, str]]
    failed: frozenset[int]


def read_answers(
    replies: Iterable[Message], common: Mapping[str, Any], federation: Federation, strategy: Strategy
) -> Answers:
    """Return what the answers to a hello say; of several by one node the first that will do counts.

    Args:
        replies: to the hello.
        common: what all parties must have in common (see :func:`fedkd.app.introduction.agreed`).
        federation: the server's.
        strategy: the server's.
    """
    nodes: dict[int, Said] = {}
    refused: list[tuple[int, str]] = []
    failed: set[int] = set()
    for message in replies:
        node = message.metadata.src_node_id
        try:
            if node not in nodes:
                nodes[node] = _read(message, common, federation, strategy)
        except KnowledgeError as error:
            refused.append((node, str(error)))
            failed |= {node} if message.has_error() else set()
    return Answers(nodes, refused, frozenset(failed))


def roster_of(answers: Answers, federation: Federation) -> dict[str, Participant]:
    """Return the participants by key, in sorted order.

    A client takes no part, and a warning says why, if it failed, is none of the federation's, holds another public set
    or runs other code; of two nodes with one client's name neither does. In a simulation the server knows what each
    client holds; where clients bring their own samples, it takes what a client says, if that is possible at all.

    Args:
        answers: to the server's hello.
        federation: the server's.

    Raises:
        RunError: nobody can take part, or fewer than must.
    """
    settings = federation.experiment.federation
    own = settings.partition == "own"
    names = Counter(said.card.key for said in answers.nodes.values())
    found = {said.card.key: Participant(said, node) for node, said in answers.nodes.items()}
    roster = {key: participant for key, participant in sorted(found.items()) if names[key] == 1}
    fewest = settings.min_clients or (settings.clients if own else 1)
    if len(roster) < fewest:
        causes = "\n".join(causes_in(answers)) or "none answered the server's hello; are any running?"
        few = f"only {len(roster)} of at least {fewest} clients can take part" if roster else "no client can take part"
        raise RunError(f"{few}.\n{causes}")
    if own and len(roster) > settings.clients:
        TOLD.info("%d clients take part, where federation.clients expects %d", len(roster), settings.clients)
    for cause in causes_in(answers):  # only here: what ends the run is said once
        TOLD.warning("a client takes no part: %s", cause)
    return roster


def causes_in(answers: Answers) -> dict[str, frozenset[int]]:
    """Return why nodes take no part, in order, and which: each reason once, with the first one's traceback."""
    refused: dict[str, dict[int, str]] = {}
    for node, reason in answers.refused:
        if node not in answers.nodes:
            refused.setdefault(gist(reason), {})[node] = reason
    causes = {f"{named(nodes)}: {next(iter(nodes.values()))}": frozenset(nodes) for nodes in refused.values()}
    of: dict[str, list[int]] = {}
    for node, said in sorted(answers.nodes.items()):
        of.setdefault(said.card.key, []).append(node)
    return causes | {two_of(key, nodes): frozenset(nodes) for key, nodes in sorted(of.items()) if len(nodes) > 1}


def named(nodes: Collection[int]) -> str:
    """Return nodes as an operator finds them in Flower's list."""
    return f"node{'s' if len(nodes) > 1 else ''} {first_of([str(node) for node in nodes])}"


def two_of(key: str, nodes: Collection[int]) -> str:
    """Say that several nodes give one client's name."""
    return f"{key}: expected one client of this name, found {len(nodes)} ({named(nodes)}); give each its own."


def described(roster: Mapping[str, Participant]) -> list[str]:
    """Return a line about each participant: key, architecture, view, samples and node."""
    width = max(map(len, roster), default=0)
    return [
        f"{key:{width}}  {card.architecture}, {card.view}, {card.num_samples} samples  ({named([participant.node_id])})"
        for key, card, participant in ((key, one.said.card, one) for key, one in roster.items())
    ]


def _read(message: Message, common: Mapping[str, Any], federation: Federation, strategy: Strategy) -> Said:
    """Return what an answer to the hello says.

    Raises:
        KnowledgeError: it cannot take part; the message says why.
    """
    if message.has_error():
        reason = reason_in(message)
        raise KnowledgeError(f"it could not say who it is:{chr(10) if chr(10) in reason else ' '}{reason}")
    own, alike = header_of(message.content), _common_in(message.content, common)
    header = {**alike, **own}
    if federation.experiment.federation.partition == "own":
        said = read_introduction(header, common, federation, strategy)
    else:
        key = _expect_one_of(federation, header)
        expected, missing = introduction(federation, strategy, key), federation.holdings[key].missing
        expect_said(key, header, {**expected, **common})
        said = Said(card_of(federation, key), expected["label-counts"], missing, expected["models"])
    expect_records(message.content, HEADER, *([COMMON] if alike else []))
    expect_sealed(own)
    return said


def _common_in(records: RecordDict, common: Mapping[str, Any]) -> Header:
    """Return what a client says that all should say alike: it may lie in a record of its own, beside the header.

    Raises:
        KnowledgeError: that record is not as its sender made it.
    """
    if COMMON not in records:
        return {}
    found = header_of(records, COMMON)
    seal = found.pop(SEAL, None)
    if found != common:  # the seal of what is as expected needs no look
        expect_sealed(found if seal is None else {**found, SEAL: seal})
    return found


def _expect_one_of(federation: Federation, header: Header) -> str:
    """Return the key of a client of a simulation."""
    key = header.get("client")
    if not isinstance(key, str) or key not in federation.holdings:
        raise KnowledgeError(f"the federation has no client {key!r:.80}")
    return key
