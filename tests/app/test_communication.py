"""Codecs in a run: the ledger counts what travels, strategies see plain knowledge, and damage costs its sender only."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fedkd.app.loop import Run, run
from fedkd.app.wire import PAYLOAD, knowledge_of, pack, payload_bytes, tensors_in, to_arrays, to_tensors
from fedkd.config import Experiment
from fedkd.engine.local import LocalGrid
from fedkd.errors import RunError, UserError
from fedkd.knowledge import SoftLabels, Weights
from fedkd.knowledge.codecs import ClassIndex, Float16
from fedkd.strategy import Client, MethodCard, Replies, Server, Strategy
from tests.app.tampering import ROUND, SMALL, VICTIM, Tamper, Tampered, untouched, with_content
from tests.app.test_wire import over_the_wire, raw

M, C = 40, 10
LABELS = SoftLabels(torch.arange(M), torch.randn(M, C, generator=torch.Generator().manual_seed(0)))


def coded(**communication: list[str]) -> Experiment:
    return Experiment(strategy="fedmd", **SMALL, communication=communication).changed(
        **{"strategies.fedmd.transfer_epochs": 1}
    )


def finish(experiment: Experiment, tamper: Tamper = untouched) -> Run:
    return run(Tampered(experiment, tamper), experiment)


def traffic(finished: Run) -> list[tuple[Mapping[str, int], Mapping[str, int]]]:
    return [(record.bytes_up, record.bytes_down) for record in finished.rounds]


# -- bytes


@pytest.mark.parametrize(
    ("texts", "one"),
    [
        ([], M * C * 4),
        (["float16"], M * C * 2 + 12),
        (["quantize:4"], M * C // 2 + 8 + 12),
        (["class-index"], M * 4 // 8 + 12),
        (["distributions:3"], M * C * 3 // 8 + 12),
        (["top-k:3", "float16"], M * 4 * 2 + M * 3 * 4 // 8 + 12 + 12),
    ],
)
def test_the_ledger_counts_coded_bytes(texts: list[str], one: int) -> None:
    plain = M * C * 4 + M * 8
    up, down = traffic(finish(coded(up=texts))), traffic(finish(coded(down=texts)))
    assert up == [({"SoftLabels": 4 * (one + M * 8)}, {"SoftLabels": 4 * plain} if n else {}) for n in range(3)]
    assert down == [({"SoftLabels": 4 * plain}, {"SoftLabels": 4 * (one + M * 8)} if n else {}) for n in range(3)]


def test_bytes_are_the_same_over_flowers_wire() -> None:
    for codecs in ((), (Float16(),), (ClassIndex(),)):
        records = pack({"round": 1}, LABELS, codecs=codecs)
        assert payload_bytes(records) == payload_bytes(over_the_wire(records))
        found = knowledge_of(over_the_wire(records), codecs)
        again = knowledge_of(records, codecs)
        assert isinstance(found, SoftLabels)
        assert isinstance(again, SoftLabels)
        assert torch.equal(found.logits, again.logits)
    assert payload_bytes(pack({"round": 1}, LABELS)) == LABELS.num_bytes
    assert payload_bytes(pack({"round": 1})) == 0


def test_without_codecs_the_tensors_themselves_travel() -> None:
    weights = Weights({"a#b": torch.ones(2)})  # a name that codecs would refuse
    records = pack({"round": 1}, weights)
    assert set(to_tensors(records.array_records[PAYLOAD])) == {"a#b"}
    found = knowledge_of(records)
    assert isinstance(found, Weights)
    assert torch.equal(found.tensors["a#b"], torch.ones(2))


# -- what strategies see


class Watching(Strategy):
    """Expects one-hot rows from its clients, and numbers of half precision from its server."""

    card = MethodCard(title="test", authors="-", year=2026, up=SoftLabels, down=SoftLabels)

    def client_round(self, client: Client, received: SoftLabels | None) -> SoftLabels:
        if received is not None:
            assert received.logits.dtype == torch.float32
            assert received.logits.flatten().tolist() == torch.linspace(-3, 3, M * C).half().float().tolist()
        return client.predict(client.next_public_subset)

    def server_round(self, server: Server, replies: Replies) -> SoftLabels:
        for reply in replies:
            rows = reply.knowledge.logits.softmax(1)
            assert reply.knowledge.logits.dtype == torch.float32
            assert torch.allclose(rows.sort(1).values, torch.eye(C)[-1].expand(M, C), atol=1e-6)
        return server.soft_labels(torch.linspace(-3, 3, M * C).reshape(M, C))


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_strategies_see_plain_knowledge(plan: str) -> None:
    experiment = Experiment(
        strategy=f"{__name__}:Watching", **SMALL, communication={"up": ["class-index"], "down": ["float16"]}
    ).changed(**{"engine.plan": plan})
    assert [record.failed for record in finish(experiment).rounds] == [{}, {}, {}]


def test_other_codecs_give_other_bits_and_the_same_codecs_the_same() -> None:
    digests = {
        name: [finish(coded(**communication)).summary["digest"] for _ in range(2)]
        for name, communication in {
            "none": {},
            "up": {"up": ["quantize:2"]},
            "down": {"down": ["quantize:2"]},
            "both": {"up": ["quantize:2"], "down": ["quantize:2"]},
        }.items()
    }
    assert all(first == second for first, second in digests.values())
    assert len({first for first, _ in digests.values()}) == 4


# -- damage


def with_pieces(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Tamper:
    return with_content(
        lambda content: {**content, PAYLOAD: to_arrays(change(to_tensors(content[PAYLOAD])))}  # type: ignore[arg-type]
    )


DAMAGE: dict[str, tuple[Tamper, str]] = {
    "a piece is lost": (
        with_pieces(lambda pieces: {n: t for n, t in pieces.items() if not n.endswith("index")}),
        r"logits: expected the pieces \['form', 'index'\], found \['form'\]",
    ),
    "codes are cut": (
        with_pieces(lambda pieces: {**pieces, "logits#class-index.index": pieces["logits#class-index.index"][:-1]}),
        "logits: index: expected uint8",
    ),
    "a class that there is not": (
        with_pieces(lambda pieces: {**pieces, "logits#class-index.index": pieces["logits#class-index.index"] | 255}),
        "logits: index: expected classes below 10, found 15",
    ),
    "another shape": (
        with_pieces(lambda pieces: {**pieces, "logits#class-index.form": torch.tensor([1, M // 2, C]).int()}),
        "logits: index: expected uint8",
    ),
    "a claim of the whole memory": (
        with_pieces(lambda pieces: {**pieces, "logits#class-index.form": torch.tensor([1, M, 2**31 - 1]).int()}),
        "logits: form: expected",
    ),
    "another codec's pieces": (
        with_pieces(lambda pieces: {"ids": pieces["ids"], "logits#float16.half": torch.ones(M, C).half()}),
        "logits: expected the pieces|logits#float16.half: expected pieces of",
    ),
    "no bytes": (with_content(lambda content: {**content, PAYLOAD: raw(b"")}), "payload: expected tensors"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_reply_that_cannot_be_decoded_costs_its_sender_the_round(case: str) -> None:
    tamper, reason = DAMAGE[case]
    finished = finish(coded(up=["class-index"]), tamper)
    assert [sorted(record.failed) for record in finished.rounds] == [[], [VICTIM], []]
    assert re.search(f"^{reason}", finished.rounds[ROUND - 1].failed[VICTIM])
    without = finish(coded(up=["class-index"]), lambda message, reply, grid: [])
    assert finished.summary["digest"] == without.summary["digest"]


class Loud(Strategy):
    """Sends what float16 cannot hold: the server in round one, or a client in round two."""

    card = MethodCard(title="test", authors="-", year=2026, up=SoftLabels, down=SoftLabels)

    def client_round(self, client: Client, received: SoftLabels | None) -> SoftLabels:
        soft = client.predict(client.next_public_subset)
        return SoftLabels(soft.ids, soft.logits + 1e6 * (client.round == ROUND and client.card.key == VICTIM))

    def server_round(self, server: Server, replies: Replies) -> SoftLabels:
        return server.soft_labels(torch.full((M, C), 7e4))


def test_what_a_client_cannot_code_costs_it_the_round() -> None:
    finished = finish(Experiment(strategy=f"{__name__}:Loud", **SMALL, communication={"up": ["float16"]}))
    assert [sorted(record.failed) for record in finished.rounds] == [[], [VICTIM], []]
    assert "logits: float16: expected numbers up to 65504 in size, found 1" in finished.rounds[1].failed[VICTIM]


def test_what_the_server_cannot_code_ends_the_run_in_one_line() -> None:
    with pytest.raises(RunError, match=r"^round 2: .* logits: float16: .* found 70000; change communication.down\.$"):
        finish(Experiment(strategy=f"{__name__}:Loud", **SMALL, communication={"down": ["float16"]}))


def test_a_wrong_name_is_refused_by_both_sides() -> None:
    for way in ("up", "down"):
        with pytest.raises(UserError, match=f"^communication.{way}: unknown codec 'flaot16'"):
            LocalGrid(coded(**{way: ["flaot16"]}))


def test_what_many_receive_is_coded_once() -> None:
    packed: dict[Any, Any] = {}
    first, second = (pack({"client": key}, LABELS, packed, (Float16(),)) for key in "ab")
    assert first[PAYLOAD] is second[PAYLOAD]
    assert set(tensors_in(first.array_records[PAYLOAD])) == {"ids", "logits#float16.form", "logits#float16.half"}
