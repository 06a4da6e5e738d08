"""A reply is a claim: read alone here; what a bad one does to a run is in test_server."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Error, Message, RecordDict
from torch import Tensor

from fedkd.app.validation import SCORES, Expectation, read_evaluation, read_reply
from fedkd.app.wire import EXTRA, pack, to_arrays
from fedkd.flower_internals import ensure_task_identity
from fedkd.knowledge import Bundle, Contract, Knowledge, KnowledgeError, Prototypes, SoftLabels
from fedkd.strategy.base import Payload

IDS = torch.tensor([4, 7, 9])
CONTRACT = Contract(classes=2, feature_width=3, public_ids=IDS, weights={})
STATE = "0123456789abcdef" * 4
HEADER: Mapping[str, Any] = {"round": 5, "client": "a", "num-samples": 30, "state": STATE, "steps": 7}
SOFT = SoftLabels(IDS, torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))


def expected(kind: Payload | None = SoftLabels, dtype: torch.dtype = torch.float32) -> Expectation:
    return Expectation("a", 5, 30, kind, CONTRACT, dtype)


def reply(records: RecordDict | Error, type_: str = "train") -> Message:
    ensure_task_identity()
    return Message(records, reply_to=Message(pack({}), dst_node_id=1, message_type=type_))


def test_an_honest_reply_is_read() -> None:
    knowledge, state, steps, afresh = read_reply(reply(pack(HEADER, SOFT)), expected())

    assert isinstance(knowledge, SoftLabels)
    assert torch.equal(knowledge.logits, SOFT.logits)
    assert torch.equal(knowledge.ids, IDS)
    assert (state, steps, afresh) == (STATE, 7, False)


def test_a_client_may_say_that_it_has_begun_anew_and_nothing_else_about_it() -> None:
    assert read_reply(reply(pack({**HEADER, "afresh": True}, SOFT)), expected()).afresh
    for said in (False, 1, "yes"):
        with pytest.raises(KnowledgeError, match="afresh: expected true or nothing, found"):
            read_reply(reply(pack({**HEADER, "afresh": said}, SOFT)), expected())


def test_an_honest_reply_without_payload_is_read() -> None:
    assert read_reply(reply(pack(HEADER)), expected(None)) == (None, STATE, 7, False)


def test_nothing_is_read_only_where_it_may_be_sent() -> None:
    optional = replace(expected(), optional=True)
    assert read_reply(reply(pack(HEADER)), optional) == (None, STATE, 7, False)
    assert read_reply(reply(pack(HEADER, SOFT)), optional).knowledge is not None
    with pytest.raises(KnowledgeError, match="kind: expected 'SoftLabels', found ''"):
        read_reply(reply(pack(HEADER)), expected())
    with pytest.raises(KnowledgeError, match="kind: expected 'SoftLabels', found 'Prototypes'"):
        read_reply(reply(pack(HEADER, PROTOS)), optional)


@pytest.mark.parametrize(("name", "value"), [("round", True), ("round", 1.0), ("num-samples", 30.0), ("client", 1)])
def test_equal_numbers_of_another_type_are_refused(name: str, value: object) -> None:
    first = Expectation("a", 1, 30, SoftLabels, CONTRACT, torch.float32)
    read_reply(reply(pack({**HEADER, "round": 1}, SOFT)), first)

    with pytest.raises(KnowledgeError, match=f"{name}: expected"):
        read_reply(reply(pack({**HEADER, "round": 1, name: value}, SOFT)), first)


@pytest.mark.parametrize("state", ["", STATE[1:], STATE + "0", STATE.upper(), STATE + "\n", 7, "é" * 64])
def test_the_state_is_a_digest(state: object) -> None:
    with pytest.raises(KnowledgeError, match="state: expected a SHA-256"):
        read_reply(reply(pack({**HEADER, "state": state}, SOFT)), expected())


@pytest.mark.parametrize(
    ("dtype", "agreed", "counts"),
    [
        (torch.float16, torch.float32, True),
        (torch.bfloat16, torch.float32, True),
        (torch.float32, torch.float32, True),
        (torch.float64, torch.float32, False),
        (torch.float64, torch.float64, True),
        (torch.float32, torch.float64, True),
    ],
    ids=str,
)
def test_no_reply_is_wider_than_the_experiment(dtype: torch.dtype, agreed: torch.dtype, counts: bool) -> None:
    message = reply(pack(HEADER, SoftLabels(IDS, SOFT.logits.to(dtype))))

    if counts:
        knowledge = read_reply(message, expected(dtype=agreed)).knowledge
        assert isinstance(knowledge, SoftLabels)
        assert knowledge.logits.dtype == dtype
    else:
        with pytest.raises(KnowledgeError, match=r"logits: expected torch.float32 or narrower, found torch.float64"):
            read_reply(message, expected(dtype=agreed))


@pytest.mark.parametrize(
    ("counts", "fits"), [([10, 20], True), ([0, 0], True), ([10, 21], False), ([2**62] * 2, False)]
)
def test_prototypes_weigh_no_more_than_the_shard(counts: list[int], fits: bool) -> None:
    message = reply(pack(HEADER, Prototypes(torch.ones(2, 3), torch.tensor(counts))))

    if fits:
        read_reply(message, expected(Prototypes))
    else:
        with pytest.raises(KnowledgeError, match="counts: expected at most 30 samples in all"):
            read_reply(message, expected(Prototypes))


PARTS: Mapping[str, type[Knowledge]] = {"soft": SoftLabels, "protos": Prototypes}
PROTOS = Prototypes(torch.ones(2, 3), torch.tensor([10, 20]))


def test_a_bundle_has_the_parts_that_were_agreed() -> None:
    knowledge, *_ = read_reply(reply(pack(HEADER, Bundle({"soft": SOFT, "protos": PROTOS}))), expected(PARTS))

    assert isinstance(knowledge, Bundle)
    assert set(knowledge.parts) == {"soft", "protos"}


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"soft": SOFT},
        {"soft": SOFT, "protos": SOFT},
        {"soft": SOFT, "protos": PROTOS, "more": SOFT},
        {"soft": PROTOS, "protos": SOFT},
    ],
    ids=["nothing", "one missing", "another kind", "one more", "exchanged"],
)
def test_a_bundle_with_other_parts_is_refused(parts: Mapping[str, Knowledge]) -> None:
    with pytest.raises(KnowledgeError, match="bundle: expected the parts"):
        read_reply(reply(pack(HEADER, Bundle(parts))), expected(PARTS))


def test_the_parts_of_a_bundle_are_checked() -> None:
    lie = Prototypes(torch.ones(2, 3), torch.tensor([10, 21]))
    other = SoftLabels(IDS.flip(0), SOFT.logits)

    with pytest.raises(KnowledgeError, match="counts: expected at most 30"):
        read_reply(reply(pack(HEADER, Bundle({"soft": SOFT, "protos": lie}))), expected(PARTS))
    with pytest.raises(KnowledgeError, match="ids: expected the ids of the round's public subset"):
        read_reply(reply(pack(HEADER, Bundle({"soft": other, "protos": PROTOS}))), expected(PARTS))


def test_a_claim_that_is_too_deep_to_read_is_refused() -> None:
    records = pack(HEADER, SOFT)
    records.config_records["header"]["kind"] = "Bundle"
    records["payload"] = to_arrays({"a:Bundle/" * 3000 + "x": torch.ones(1)})

    with pytest.raises(KnowledgeError, match="reply: it cannot be read: RecursionError"):
        read_reply(reply(records), expected(Bundle))


@pytest.mark.parametrize("error", [TypeError, IndexError, RuntimeError, MemoryError, ZeroDivisionError])
def test_whatever_a_claim_breaks_is_blamed_on_its_sender(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(self: SoftLabels, contract: Contract) -> None:
        raise error("broken by the claim")

    monkeypatch.setattr(SoftLabels, "check", check)

    with pytest.raises(KnowledgeError, match=f"reply: it cannot be read: {error.__name__}: broken by the claim"):
        read_reply(reply(pack(HEADER, SOFT)), expected())


def test_an_interrupt_is_not_blamed_on_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(self: SoftLabels, contract: Contract) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SoftLabels, "check", check)

    with pytest.raises(KeyboardInterrupt):
        read_reply(reply(pack(HEADER, SOFT)), expected())


@pytest.mark.parametrize("reason", ["Traceback\nValueError: x\n", " \n", None])
def test_an_error_says_what_the_client_said(reason: str | None) -> None:
    said = (reason or "").strip() or "the client failed without saying why"

    for read in (lambda m: read_reply(m, expected()), lambda m: read_evaluation(m, "a", 5, None)):
        with pytest.raises(KnowledgeError) as caught:
            read(reply(Error(code=0, reason=reason)))
        assert str(caught.value) == said


# --- evaluation

ALL = {f"{where}/{name}": 0.25 for where in ("global", "local") for name in SCORES}
GLOBAL = {name: value for name, value in ALL.items() if name.startswith("global/")}


def evaluation(scores: Mapping[str, object], logits: Tensor | None = None) -> Message:
    records = pack({"round": 5, "client": "a", **scores})
    if logits is not None:
        records[EXTRA] = to_arrays({"logits": logits})
    return reply(records, "evaluate")


def test_scores_whose_sum_would_be_infinite_are_refused() -> None:
    for name in ("entropy", "nll"):
        with pytest.raises(KnowledgeError, match=f"evaluation: global/{name}: expected 0 to"):
            read_evaluation(evaluation({**ALL, f"global/{name}": 1.7e308}), "a", 5, None)


def test_scores_are_those_that_we_measure() -> None:
    assert {"accuracy", "nll", "ece", "brier", "entropy"} == SCORES


@pytest.mark.parametrize("scores", [ALL, GLOBAL], ids=["both", "no local test split"])
def test_honest_scores_are_read(scores: Mapping[str, float]) -> None:
    assert read_evaluation(evaluation(scores), "a", 5, None) == (scores, None)


def test_a_diverged_student_may_have_scores_that_are_no_numbers() -> None:
    scores, _ = read_evaluation(
        evaluation({**GLOBAL, "global/nll": float("nan"), "global/accuracy": 0.0}), "a", 5, None
    )

    assert scores["global/accuracy"] == 0.0
    assert scores["global/nll"] != scores["global/nll"]


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {name: value for name, value in ALL.items() if name.startswith("local/")},
        {**ALL, "global/fame": 1.0},
        {**GLOBAL, "local/accuracy": 1.0},
        {**GLOBAL, "global/accuracy": 1},
        {**GLOBAL, "global/accuracy": -0.1},
        {**GLOBAL, "global/accuracy": 1.1},
        {**GLOBAL, "global/accuracy": float("nan")},
        {**GLOBAL, "global/accuracy": float("inf")},
        {**ALL, "local/accuracy": 2.0},
        {**ALL, "local/nll": -1.0},
        {**ALL, "global/brier": 2.5},
        {**ALL, "global/ece": float("inf")},
    ],
)
def test_other_scores_are_refused(scores: Mapping[str, object]) -> None:
    with pytest.raises(KnowledgeError, match="evaluation: "):
        read_evaluation(evaluation(scores), "a", 5, None)


def test_honest_logits_are_read() -> None:
    logits = torch.arange(6.0).reshape(3, 2)

    scores, found = read_evaluation(evaluation(ALL, logits), "a", 5, (3, 2))

    assert scores == ALL
    assert found is not None
    assert torch.equal(found, logits)


@pytest.mark.parametrize("logits", [None, torch.ones(2, 2), torch.ones(6), torch.ones(3, 2).long()])
def test_other_logits_are_refused(logits: Tensor | None) -> None:
    with pytest.raises(KnowledgeError, match=r"evaluation: expected .*logits of shape \(3, 2\)"):
        read_evaluation(evaluation(ALL, logits), "a", 5, (3, 2))


def test_logits_that_are_not_finite_are_left_out() -> None:
    logits = torch.ones(3, 2)
    logits[1, 1] = float("inf")

    assert read_evaluation(evaluation(ALL, logits), "a", 5, (3, 2)) == (ALL, None)


def test_an_evaluation_of_another_round_or_client_is_refused() -> None:
    with pytest.raises(KnowledgeError, match="round: expected 6, found 5"):
        read_evaluation(evaluation(ALL), "a", 6, None)
    with pytest.raises(KnowledgeError, match="client: expected 'b', found 'a'"):
        read_evaluation(evaluation(ALL), "b", 5, None)
