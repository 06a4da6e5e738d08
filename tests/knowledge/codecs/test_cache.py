"""The synchronised cache: both sides alike by every bit, whoever misses which rounds, and the bytes by hand."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd import losses
from fedkd.config import Experiment
from fedkd.knowledge import KINDS, Contract, Knowledge, KnowledgeError, SoftLabels
from fedkd.knowledge.codecs import Cache, Signal, catch_up, caught_up, missing, num_bytes, publish, receive
from fedkd.strategy import Client, ClientCard, MethodCard, Replies, Server, Strategy
from tests.app.tampering import SMALL, VICTIM, finish, lost

C, D = 4, 3


def assert_equal(found: Cache, expected: Cache) -> None:
    for name in ("ids", "rounds", "kept", "rows"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs), name


def signals_of(tensors: dict[str, Tensor]) -> list[int]:
    packed = tensors["signals"].numpy()
    bits = np.unpackbits(packed, bitorder="little")[: 2 * len(tensors["ids"])].reshape(-1, 2)
    return [int(low + 2 * high) for low, high in bits]


def test_a_life_of_one_entry_by_hand() -> None:
    """Kept in round 1 for three rounds: there in 2 and 3; asked for in 5 it has expired, and in 6 it is kept again."""
    cache, ids, expected = Cache.empty(C), torch.tensor([7]), {1: 2, 2: 1, 3: 1, 5: 3, 6: 2, 7: 1}
    for round_, signal in expected.items():
        wanted = missing(cache, ids, round_, D)
        assert wanted.tolist() == ([] if signal == 1 else [7])
        cache, tensors = publish(cache, ids, torch.full((len(wanted), C), float(round_)), round_, D)
        assert signals_of(tensors) == [signal]
        assert cache.kept.tolist() == [signal != 3]
        assert cache.rounds.tolist() == [{1: 1, 2: 1, 3: 1, 5: 5, 6: 6, 7: 6}[round_]]


def test_both_sides_stay_alike_whoever_takes_part() -> None:
    """Sixty rounds, five clients that miss half of them, against a dictionary that plays the same rules by itself."""
    source = np.random.default_rng(0)
    server, clients, last = Cache.empty(C), [Cache.empty(C) for _ in range(5)], [0] * 5
    plain: dict[int, tuple[int, np.ndarray]] = {}  # type: ignore[type-arg]
    seen: set[int] = set()
    for round_ in range(1, 61):
        ids = source.permutation(40)[:12]
        lacking = [i for i in ids if i not in plain or round_ - plain[i][0] >= D]
        asked = missing(server, torch.tensor(ids), round_, D)
        assert asked.tolist() == lacking
        fresh = source.normal(size=(len(lacking), C)).astype(np.float32)
        keep = source.random(len(lacking)) < 0.8
        truth, before = {}, server
        for i, row, stays in zip(lacking, fresh, keep, strict=True):
            truth[i] = row
            if i in plain:
                del plain[i]
            elif stays:
                plain[i] = (round_, row)
        expected = np.stack([truth[i] if i in truth else plain[i][1] for i in ids])
        server, tensors = publish(server, torch.tensor(ids), torch.from_numpy(fresh), round_, D, torch.from_numpy(keep))
        seen |= set(signals_of(tensors))
        assert server.ids[server.kept].tolist() == sorted(plain)
        for n in range(5):
            if source.random() < 0.5:
                mine = caught_up(clients[n], catch_up(before, last[n]))
                assert_equal(mine, before)
                clients[n], found = receive(mine, tensors, round_)
                np.testing.assert_array_equal(found, expected)
                assert_equal(clients[n], server)
                last[n] = round_
    assert seen == {0, 1, 2, 3}


def test_who_missed_nothing_is_sent_nothing_to_catch_up() -> None:
    cache, _ = publish(Cache.empty(C), torch.tensor([3, 1]), torch.ones(2, C), 1, D)
    assert num_bytes(catch_up(cache, since=1)) == 0
    assert num_bytes(catch_up(cache, since=0)) == 2 * 8 + 2 * 4 + 1 + 2 * C * 4


def test_bytes_by_hand() -> None:
    cache, first = publish(Cache.empty(C), torch.arange(10), torch.ones(10, C), 1, D)
    _, second = publish(cache, torch.arange(5, 15), torch.ones(5, C), 2, D)
    assert num_bytes(first) == 10 * 8 + 3 + 10 * C * 4
    assert num_bytes(second) == 10 * 8 + 3 + 5 * C * 4  # five of ten rows hit the cache


def test_the_order_of_ids_does_not_show() -> None:
    rows = torch.arange(12.0).reshape(3, C)
    one, _ = publish(Cache.empty(C), torch.tensor([9, 2, 5]), rows, 1, D)
    other, _ = publish(Cache.empty(C), torch.tensor([5, 9, 2]), rows[[2, 0, 1]], 1, D)
    assert_equal(one, other)
    assert one.ids.tolist() == [2, 5, 9]
    assert one.rows[:, 0].tolist() == [4.0, 8.0, 0.0]


def test_the_old_cache_is_not_changed() -> None:
    old, _ = publish(Cache.empty(C), torch.tensor([1]), torch.ones(1, C), 1, D)
    publish(old, torch.tensor([1, 2]), torch.zeros(2, C), 9, D)
    assert (old.ids.tolist(), old.kept.tolist(), old.rows.sum().item()) == ([1], [True], C)


def test_rows_that_nobody_asked_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected rows of shape \(2, 4\), one per missing id, found \(1, 4\)"):
        publish(Cache.empty(C), torch.tensor([1, 2]), torch.ones(1, C), 1, D)


def damaged(name: str, value: Tensor) -> tuple[Cache, dict[str, Tensor]]:
    cache, _ = publish(Cache.empty(C), torch.arange(3), torch.ones(3, C), 1, D)
    _, tensors = publish(cache, torch.arange(5), torch.ones(2, C), 2, D)
    return cache, {**tensors, name: value}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ids", torch.tensor([0, 1, 2, 3, 3]), "ids: expected different ones"),
        ("ids", torch.arange(5.0), "ids: expected torch.int64"),
        ("ids", torch.arange(4), "signals: expected"),
        ("ids", torch.arange(3, 8), r"found others for ids \[3, 4, 5\]; catch up"),
        ("signals", torch.zeros(2, dtype=torch.uint8), r"rows: .*\(5, 4\), found .*\(2, 4\)"),
        ("signals", torch.zeros(3, dtype=torch.uint8), r"signals: expected uint8 of shape \(2,\)"),
        ("rows", torch.ones(3, C), r"rows: .*\(2, 4\), found .*\(3, 4\)"),
        ("rows", torch.full((2, C), torch.nan), "rows: expected finite"),
        ("more", torch.ones(1), r"unexpected \['more'\]"),
    ],
)
def test_damage_is_refused(name: str, value: Tensor, reason: str) -> None:
    cache, tensors = damaged(name, value)
    with pytest.raises(KnowledgeError, match=reason):
        receive(cache, tensors, 2)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ids", torch.tensor([1, 0, 2]), "ids: expected ascending"),
        ("rounds", torch.zeros(3), "rounds: expected torch.int32"),
        ("kept", torch.tensor([3], dtype=torch.uint8), r"rows: .*\(2, 4\), found .*\(3, 4\)"),
        ("rows", torch.full((3, C), torch.inf), "rows: expected finite"),
    ],
)
def test_a_damaged_catch_up_is_refused(name: str, value: Tensor, reason: str) -> None:
    cache, _ = publish(Cache.empty(C), torch.arange(3), torch.ones(3, C), 1, D)
    with pytest.raises(KnowledgeError, match=reason):
        caught_up(Cache.empty(C), {**catch_up(cache, 0), name: value})


def test_who_did_not_catch_up_is_told() -> None:
    _, tensors = damaged("nothing", torch.ones(0))
    del tensors["nothing"]
    with pytest.raises(KnowledgeError, match=r"found others for ids \[0, 1, 2\]; catch up"):
        receive(Cache.empty(C), tensors, 2)


def test_two_bits_hold_every_signal() -> None:
    assert sorted(Signal) == [0, 1, 2, 3]


# -- in a run: a strategy keeps the cache in its clients' state and the server's


@dataclass(frozen=True)
class _FreshRows(Knowledge):
    """What a client sends: its logits for what its cache lacks."""

    ids: Tensor
    logits: Tensor

    def to_tensors(self) -> dict[str, Tensor]:
        return {"ids": self.ids, "logits": self.logits}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "_FreshRows":
        return cls(tensors["ids"], tensors["logits"])

    def check(self, contract: Contract) -> None:
        assert torch.isin(self.ids, contract.public_ids).all()
        assert self.logits.shape == (len(self.ids), contract.classes)


@dataclass(frozen=True)
class _CacheNews(Knowledge):
    """What a client receives: what it missed, and the last round's rows."""

    tensors: Mapping[str, Tensor]

    def to_tensors(self) -> dict[str, Tensor]:
        return dict(self.tensors)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "_CacheNews":
        return cls(tensors)

    def check(self, contract: Contract) -> None:
        pass


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


class Cached(Strategy):
    """DS-FL's round with SCARLET's cache; a client that missed a round catches up in the next."""

    card = MethodCard(title="test", authors="-", year=2026, up=_FreshRows, down=_CacheNews)

    duration = 4

    def client_round(self, client: Client, received: _CacheNews | None) -> _FreshRows:
        cache = Cache(**client.state) if client.state else Cache.empty(client.classes)
        if received is not None:
            cache = caught_up(cache, below("missed/", received.tensors))
            ids = received.tensors["news/ids"]
            cache, targets = receive(cache, below("news/", received.tensors), client.round - 1)
            client.fit(client.public(SoftLabels(ids, targets)), losses.kl_to_probabilities)
        client.state = dict(vars(cache))
        subset = client.next_public_subset
        lacking = torch.isin(subset.ids, missing(cache, subset.ids, client.round, self.duration))
        asked = subset.take(lacking.nonzero().flatten())
        return _FreshRows(asked.ids, client.logits(asked) if len(asked) else torch.empty(0, client.classes))

    def server_round(self, server: Server, replies: Replies) -> None:
        cache = Cache(**below("cache/", server.state)) if server.state else Cache.empty(server.classes)
        ids, duration = server.public(server.clients["client-0"].view).ids, self.duration
        asked = missing(cache, ids, server.round, duration)
        assert all(torch.equal(reply.knowledge.ids, asked) for reply in replies)  # each has the server's cache
        rows = torch.stack([reply.knowledge.logits for reply in replies]).softmax(-1).mean(0)
        after, news = publish(cache, ids, rows, server.round, duration)
        complete = {f"complete/{reply.client.key}": torch.tensor(server.round - 1) for reply in replies}
        kept = {name: tensor for name, tensor in server.state.items() if name.startswith("complete/")}
        before = under("before/", vars(cache))
        server.state = {**kept, **complete, **before, **under("cache/", vars(after)), **under("news/", news)}

    def download(self, server: Server, client: ClientCard, common: Knowledge | None) -> _CacheNews | None:
        if not server.state:
            return None
        since = int(server.state.get(f"complete/{client.key}", torch.tensor(0)))
        missed = catch_up(Cache(**below("before/", server.state)), since)
        return _CacheNews({**under("missed/", missed), **under("news/", below("news/", server.state))})


class Uncached(Cached):
    """The same where no entry lives long enough to save anything."""

    duration = 1


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_a_strategy_keeps_a_cache_and_saves_bytes(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four clients, one of which loses its second round, and the same 60 public samples in every round."""
    for kind in (_FreshRows, _CacheNews):  # known by name for this test only
        monkeypatch.setitem(KINDS, kind.__name__, kind)
    classes = 10
    row, signals, whole = 8 + classes * 4, 60 * 8 + 15, 60 * classes * 4
    up, down = 4 * 60 * row, 4 * signals
    missed = 60 * (8 + 4) + 8 + whole  # what the first round kept: ids, rounds, one bit each, rows
    expected = {
        "Cached": ([up, 0, 0, 0, up], [0, down + 4 * whole, down + missed, down, down]),
        "Uncached": ([up, 3 * 60 * row, up, up, up], [0, *(down + 4 * whole + late for late in (0, missed, 0, 0))]),
    }
    for name, (ups, downs) in expected.items():
        experiment = Experiment(strategy=f"{__name__}:{name}", **SMALL).changed(
            **{"rounds": 5, "data.public_per_round": 0, "engine.plan": plan}
        )
        finished = finish(experiment, lost)
        assert [list(record.failed) for record in finished.rounds] == [[], [VICTIM], [], [], []]
        assert [sum(record.bytes_up.values()) for record in finished.rounds] == ups
        assert [sum(record.bytes_down.values()) for record in finished.rounds] == downs
