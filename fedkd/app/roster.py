"""Who takes part: what the clients say of themselves before round one."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message

from fedkd.app.history import ClientRecord, Scores
from fedkd.app.introduction import agreed, expect_said, introduction, read_introduction
from fedkd.app.wire import HEADER, Header, expect_records, expect_sealed, header_of
from fedkd.config import Experiment
from fedkd.data.federation import Federation
from fedkd.errors import RunError
from fedkd.knowledge import KnowledgeError
from fedkd.learner.base import ClientCard, card_of
from fedkd.strategy import Strategy

LOG = logging.getLogger("fedkd")
_LONGEST_REASON = 20_000  # characters of a client's traceback that are kept, the last ones


@dataclass(frozen=True)
class Participant:
    """One client of the federation.

    Attributes:
        card: key, architecture, view and number of samples.
        node_id: Flower's number of its node, random in a deployment: never used for anything but addressing.
        label_counts: samples of each class in its shard.
        missing: number of its training samples that lack a view, for each view that it holds.
        models: number of its models; without any it takes part in no round.
    """

    card: ClientCard
    node_id: int
    label_counts: Sequence[int]
    missing: Mapping[str, int]
    models: int

    def record(self, scores: Mapping[str, float]) -> ClientRecord:
        """Return the client's record, given scores named ``global/accuracy``, ``local/nll``, ..."""
        global_, local = (_below(scores, prefix) for prefix in ("global/", "local/"))
        card = self.card
        return ClientRecord(
            card.key,
            card.architecture,
            card.view,
            card.num_samples,
            self.missing,
            self.label_counts,
            global_,
            local or None,
        )


@dataclass(frozen=True)
class Answers:
    """What nodes answered to the server's hello.

    Attributes:
        nodes: the participants that they say they are, by node.
        refused: nodes whose answers will not do, and why.
        failed: those of them that gave no answer but an error.
    """

    nodes: Mapping[int, Participant]
    refused: Sequence[tuple[int, str]]
    failed: frozenset[int]


def read_answers(
    replies: Iterable[Message], experiment: Experiment, federation: Federation, strategy: Strategy
) -> Answers:
    """Return what the answers to a hello say; of several by one node the first that will do counts."""
    common = agreed(experiment, federation, strategy)
    nodes: dict[int, Participant] = {}
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
    nodes, refused = answers.nodes, dict.fromkeys(reason for _, reason in answers.refused)  # each once, in order
    names = Counter(participant.card.key for participant in nodes.values())
    for key in sorted(key for key, count in names.items() if count > 1):
        refused[two_of(key, names[key])] = None
    for reason in refused:
        LOG.warning("a client takes no part: %s", reason)
    found = sorted(nodes.values(), key=lambda participant: participant.card.key)
    roster = {participant.card.key: participant for participant in found if names[participant.card.key] == 1}
    fewest = settings.min_clients or (settings.clients if own else 1)
    if len(roster) < fewest:
        causes = "\n".join(refused) or "none answered the server's hello; are any running?"
        few = f"only {len(roster)} of at least {fewest} clients can take part" if roster else "no client can take part"
        raise RunError(f"{few}.\n{causes}")
    return roster


def two_of(key: str, count: int) -> str:
    """Say that several nodes give one client's name."""
    return f"{key}: expected one client of this name, found {count}; give each its own."


def described(roster: Mapping[str, Participant]) -> list[str]:
    """Return a line about each participant: key, architecture, view and samples."""
    width = max(map(len, roster), default=0)
    return [
        f"{key:{width}}  {card.architecture}, {card.view}, {card.num_samples} samples"
        for key, card in ((key, participant.card) for key, participant in roster.items())
    ]


def _read(message: Message, common: Mapping[str, Any], federation: Federation, strategy: Strategy) -> Participant:
    """Return the participant that an answer to the hello is from.

    Raises:
        KnowledgeError: it cannot take part; the message says why.
    """
    if message.has_error():
        raise KnowledgeError(f"it failed before round one:\n{(message.error.reason or '').strip()[-_LONGEST_REASON:]}")
    header, node = header_of(message.content), message.metadata.src_node_id
    if federation.experiment.federation.partition == "own":
        said = read_introduction(header, common, federation, strategy)
        participant = Participant(said.card, node, said.label_counts, said.missing, said.models)
    else:
        key = _expect_one_of(federation, header)
        expected, missing = introduction(federation, strategy, key), federation.holdings[key].missing
        expect_said(key, header, {**expected, **common})
        participant = Participant(card_of(federation, key), node, expected["label-counts"], missing, expected["models"])
    expect_records(message.content, HEADER)
    expect_sealed(header)
    return participant


def _expect_one_of(federation: Federation, header: Header) -> str:
    """Return the key of a client of a simulation."""
    key = header.get("client")
    if not isinstance(key, str) or key not in federation.holdings:
        raise KnowledgeError(f"the federation has no client {key!r:.80}")
    return key


def _below(scores: Mapping[str, float], prefix: str) -> Scores:
    return {name.removeprefix(prefix): value for name, value in scores.items() if name.startswith(prefix)}
