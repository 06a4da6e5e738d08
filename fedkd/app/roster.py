"""Who takes part: what the clients say of themselves before round one."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message

import fedkd
from fedkd.app.history import ClientRecord, Scores
from fedkd.app.source_digest import source_digest
from fedkd.app.wire import header_of
from fedkd.data.federation import Federation
from fedkd.errors import RunError
from fedkd.knowledge import KnowledgeError
from fedkd.learner.base import ClientCard
from fedkd.strategy import Strategy

LOG = logging.getLogger("fedkd")


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


def card_of(federation: Federation, key: str) -> ClientCard:
    """Return what the server may know of a client."""
    holding = federation.holdings[key]
    teacher_view = federation.experiment.federation.teacher_view
    return ClientCard(key, holding.architecture, holding.view, len(holding.train), teacher_view)


def introduction(federation: Federation, strategy: Strategy, key: str) -> dict[str, Any]:
    """Return what an honest client says of itself: client and server make it from the same experiment."""
    card, holding = card_of(federation, key), federation.holdings[key]
    counts = federation.labels(holding.train).bincount(minlength=len(federation.classes))
    return {
        "client": card.key,
        "architecture": card.architecture,
        "view": card.view,
        "num-samples": card.num_samples,
        "label-counts": counts.tolist(),
        "models": len(strategy.client_models(card)),
        "public-set": federation.public_digest,
        "version": fedkd.__version__,
        "code": source_digest(type(strategy)),
    }


def read_roster(replies: Iterable[Message], federation: Federation, strategy: Strategy) -> dict[str, Participant]:
    """Return the participants by key, in sorted order.

    A client takes no part, and a warning says why, if it failed, is none of the federation's, holds another public set
    or runs other code; of two nodes with one client's name neither does.

    Args:
        replies: to the server's hello.
        federation: the server's.
        strategy: the server's.

    Raises:
        RunError: nobody can take part.
    """
    nodes: dict[int, str] = {}
    refused: dict[str, None] = {}  # each reason once, in order
    for message in replies:
        node = message.metadata.src_node_id
        try:
            if node not in nodes:
                nodes[node] = _read_key(message, federation, strategy)
        except KnowledgeError as error:
            refused[str(error)] = None
    names = Counter(nodes.values())
    for key in sorted(key for key, count in names.items() if count > 1):
        refused[f"{key}: expected one client of this name, found {names[key]}; give each its own."] = None
    for reason in refused:
        LOG.warning("a client takes no part: %s", reason)
    roster = {key: _participant(federation, strategy, key, n) for n, key in nodes.items() if names[key] == 1}
    if not roster:
        causes = "\n".join(refused) or "none answered the server's hello; are any running?"
        raise RunError(f"no client can take part.\n{causes}")
    return dict(sorted(roster.items()))


def _read_key(message: Message, federation: Federation, strategy: Strategy) -> str:
    if message.has_error():
        raise KnowledgeError(f"it failed before round one:\n{(message.error.reason or '').strip()}")
    header = header_of(message.content)
    key = header.get("client")
    if not isinstance(key, str) or key not in federation.holdings:
        raise KnowledgeError(f"the federation has no client {key!r:.80}")
    for name, expected in introduction(federation, strategy, key).items():
        if header.get(name) != expected:
            raise KnowledgeError(
                f"{key}: {name}: expected {expected!r:.80} as the server has it, found {header.get(name)!r:.80}"
            )
    return key


def _participant(federation: Federation, strategy: Strategy, key: str, node_id: int) -> Participant:
    said = introduction(federation, strategy, key)
    missing = federation.holdings[key].missing
    return Participant(card_of(federation, key), node_id, said["label-counts"], missing, said["models"])


def _below(scores: Mapping[str, float], prefix: str) -> Scores:
    return {name.removeprefix(prefix): value for name, value in scores.items() if name.startswith(prefix)}
