"""A reply is a claim: it counts only if everything about it is as agreed."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fedkd import metrics
from fedkd.app.wire import (
    EXTRA,
    HEADER,
    PAYLOAD,
    Header,
    expect_records,
    expect_sealed,
    header_of,
    knowledge_of,
    reason_in,
    to_tensors,
)
from fedkd.checks import all_finite
from fedkd.knowledge import Bundle, Contract, Knowledge, KnowledgeError, Prototypes
from fedkd.knowledge.codecs import Codec
from fedkd.strategy.base import Payload, payload_type

SCORES = frozenset(metrics.evaluate(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)))
"""Names of what is measured of a model."""
LARGEST_SCORE = {"accuracy": 1.0, "ece": 1.0, "brier": 2.0, "nll": 1e30, "entropy": 1e3}
"""What no honest score exceeds; a diverged model may have NaN."""


@dataclass(frozen=True)
class Expectation:
    """What an honest reply of one client in one round looks like.

    Attributes:
        client: its key.
        round: number of the round.
        num_samples: what the client said of its shard before round one.
        kind: type of the payload, or the parts of a bundle by name; None if nothing travels.
        contract: shapes, classes, public subset.
        dtype: the experiment's floating-point type; a wider one would change the type of every result.
        optional: whether it may send nothing instead.
        codecs: what the payload is coded with.
    """

    client: str
    round: int
    num_samples: int
    kind: Payload | None
    contract: Contract
    dtype: torch.dtype
    optional: bool = False
    codecs: Sequence[Codec] = ()


class Claim(NamedTuple):
    """What a reply says, when it has been checked.

    Attributes:
        knowledge: the payload.
        state: SHA-256 of the client's state.
        steps: gradient steps that the client took.
        afresh: whether it began anew, as its state was lost.
    """

    knowledge: Knowledge | None
    state: str
    steps: int
    afresh: bool = False


def read_reply(message: Message, expected: Expectation) -> Claim:
    """Return what a reply says.

    Raises:
        KnowledgeError: the reply must not count; the message says why.
    """
    with _blamed_on_the_sender():
        header = _checked_header(message, expected.client, expected.round)
        _expect_equal(header, "num-samples", expected.num_samples)
        kind = payload_type(expected.kind)
        if not (expected.optional and header.get("kind") == ""):
            _expect_equal(header, "kind", kind.__name__ if kind else "")
        state = header.get("state")
        if not (isinstance(state, str) and re.fullmatch("[0-9a-f]{64}", state)):
            raise KnowledgeError(f"state: expected a SHA-256, found {state!r:.80}")
        steps = header.get("steps")
        if type(steps) is not int or steps < 0:
            raise KnowledgeError(f"steps: expected a whole number from 0 on, found {steps!r:.80}")
        if header.get("afresh", True) is not True:
            raise KnowledgeError(f"afresh: expected true or nothing, found {header['afresh']!r:.80}")
        knowledge = knowledge_of(message.content, expected.codecs)
        if knowledge is not None:
            _check_parts(knowledge, expected.kind)
            knowledge.check(expected.contract)
            _check_width(knowledge, expected.dtype)
            _check_weight(knowledge, expected.num_samples)
        _expect_whole(message, header, *([] if knowledge is None else [PAYLOAD]))
        return Claim(knowledge, state, steps, "afresh" in header)


def read_evaluation(
    message: Message, client: str, round_: int, rows: tuple[int, int] | None
) -> tuple[dict[str, float], Tensor | None]:
    """Return a client's scores, and its logits on the global test set where an ensemble is evaluated.

    Args:
        message: the reply.
        client: key of the client that was asked.
        round_: number of the round.
        rows: shape ``(N, C)`` of the logits; None if none are wanted.

    Returns:
        Scores named ``global/accuracy``, ``local/nll``, ...; and the logits, or None if there are none or they are not
        finite: a student that has diverged is measured, but teaches nobody.

    Raises:
        KnowledgeError: the reply must not count; the message says why.
    """
    with _blamed_on_the_sender():
        header = _checked_header(message, client, round_)
        scores = _checked_scores(header)
        if rows is None:
            _expect_whole(message, header)
            return scores, None
        record = message.content.get(EXTRA)
        if not isinstance(record, ArrayRecord):
            raise KnowledgeError(f"evaluation: expected logits of shape {rows}, found none")
        logits = to_tensors(record).get("logits", torch.empty(0))
        if tuple(logits.shape) != rows or not logits.is_floating_point():
            found = f"{logits.dtype} of shape {tuple(logits.shape)}"
            raise KnowledgeError(f"evaluation: expected floating-point logits of shape {rows}, found {found}")
        _expect_whole(message, header, EXTRA)
        return scores, logits if all_finite(logits) else None


@contextmanager
def _blamed_on_the_sender() -> Iterator[None]:
    """Whatever goes wrong while a claim is read is the claim's fault, never the end of the run."""
    try:
        yield
    except KnowledgeError:
        raise
    except Exception as error:
        raise KnowledgeError(f"reply: it cannot be read: {type(error).__name__}: {error!s:.500}") from error


def _checked_header(message: Message, client: str, round_: int) -> Header:
    if message.has_error():
        raise KnowledgeError(reason_in(message) or "the client failed without saying why")
    header = header_of(message.content)
    _expect_equal(header, "client", client)
    _expect_equal(header, "round", round_)
    return header


def _expect_whole(message: Message, header: Header, *names: str) -> None:
    """Refuse a reply that something was added to, or whose header was changed on the way."""
    expect_records(message.content, HEADER, *names)
    expect_sealed(header)


def _expect_equal(header: Header, name: str, expected: str | int) -> None:
    found = header.get(name)
    if type(found) is not type(expected) or found != expected:
        raise KnowledgeError(f"{name}: expected {expected!r}, found {found!r:.80}")


def _checked_scores(header: Header) -> dict[str, float]:
    scores = {name: value for name, value in header.items() if "/" in name and isinstance(value, float)}
    global_, local = ({f"{whose}/{name}" for name in SCORES} for whose in ("global", "local"))
    if set(scores) not in (global_, global_ | local):
        raise KnowledgeError(f"evaluation: expected the scores {sorted(SCORES)}, found {sorted(scores)!s:.200}")
    for name, value in scores.items():
        largest = LARGEST_SCORE.get(name.partition("/")[2], math.inf)
        diverged = math.isnan(value) and not name.endswith("/accuracy")  # which counts a row with NaN as wrong
        if not (diverged or 0 <= value <= largest) or math.isinf(value):
            raise KnowledgeError(f"evaluation: {name}: expected 0 to {largest}, found {value}")
    return scores


def _check_width(knowledge: Knowledge, dtype: torch.dtype) -> None:
    for name, tensor in knowledge.to_tensors().items():
        if tensor.is_floating_point() and tensor.element_size() > dtype.itemsize:
            raise KnowledgeError(f"{name}: expected {dtype} or narrower, found {tensor.dtype}")


def _check_parts(knowledge: Knowledge, payload: Payload | None) -> None:
    if isinstance(knowledge, Bundle) and isinstance(payload, Mapping):
        expected = {name: kind.__name__ for name, kind in payload.items()}
        found = {name: type(part).__name__ for name, part in knowledge.parts.items()}
        if found != expected:
            raise KnowledgeError(f"bundle: expected the parts {expected}, found {found}")


def _check_weight(knowledge: Knowledge, num_samples: int) -> None:
    """Prototypes are weighted by their counts: nobody may claim more samples than it has."""
    for part in knowledge.parts.values() if isinstance(knowledge, Bundle) else [knowledge]:
        if isinstance(part, Prototypes) and part.counts.double().sum() > num_samples:
            raise KnowledgeError(f"counts: expected at most {num_samples} samples in all, found {part.counts.tolist()}")
