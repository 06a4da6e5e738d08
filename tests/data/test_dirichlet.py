"""Our own Dirichlet shards: the law, the smallest shard, the speed."""

from time import process_time

import numpy as np
import pytest

from fedkd.data.dirichlet import deal


def source(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("min_samples", [0, 1, 5, 10])
@pytest.mark.parametrize("alpha", [1e-12, 0.01, 0.5, 100.0, 1e6])
def test_every_row_goes_to_one_client_and_everybody_gets_enough(alpha: float, min_samples: int) -> None:
    labels = source(1).integers(0, 7, 3000)
    shards = deal(labels, 300, alpha, min_samples, source())
    assert sorted(np.concatenate(shards)) == list(range(3000))
    assert min(len(shard) for shard in shards) >= min_samples


def test_the_same_source_deals_the_same_shards() -> None:
    labels = source(1).integers(0, 3, 500)
    first, second, third = (deal(labels, 50, 0.5, 2, source(seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(first, third, strict=True))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_have_the_variance_of_the_dirichlet_distribution(alpha: float) -> None:
    clients, rows = 20, 20_000
    shares = np.array([
        [len(shard) / rows for shard in deal(np.zeros(rows, dtype=np.int64), clients, alpha, 0, source(seed))]
        for seed in range(100)
    ])  # fmt: skip
    mean = 1 / clients
    expected = mean * (1 - mean) / (clients * alpha + 1)
    assert shares.mean() == pytest.approx(mean)
    assert shares.var() == pytest.approx(expected, rel=0.15)


def test_classes_are_split_independently() -> None:
    labels = np.repeat([0, 1], 50_000)
    shards = deal(labels, 1000, 0.3, 0, source())
    counts = np.array([[(labels[shard] == class_).sum() for class_ in (0, 1)] for shard in shards])
    assert abs(np.corrcoef(counts.T)[0, 1]) < 0.1


def test_filling_up_takes_from_the_largest_only() -> None:
    labels = source(1).integers(0, 10, 20_000)
    before = [len(shard) for shard in deal(labels, 1000, 0.1, 0, source())]
    after = [len(shard) for shard in deal(labels, 1000, 0.1, 3, source())]
    assert [size for size in after if size < 3] == []
    gave = [old for old, new in zip(before, after, strict=True) if new < old]
    kept = [old for old, new in zip(before, after, strict=True) if new == old]
    assert min(gave) >= max(kept)


def test_a_warning_says_how_many_were_filled_up(caplog: pytest.LogCaptureFixture) -> None:
    labels = source(1).integers(0, 10, 20_000)
    deal(labels, 1000, 0.1, 0, source())
    assert not caplog.records
    drawn = [len(shard) for shard in deal(labels, 1000, 0.1, 0, source())]
    deal(labels, 1000, 0.1, 3, source())
    poor = [size for size in drawn if size < 3]
    expected = f"{len(poor)} of 1000 clients drew fewer than min_samples = 3 and got {sum(3 - n for n in poor)} samples"
    assert expected in caplog.text


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 10 times 3 rows, found 20"):
        deal(np.zeros(20, dtype=np.int64), 10, 0.5, 3, source())


def test_ten_thousand_clients_take_seconds() -> None:
    labels = source(1).integers(0, 10, 170_000)
    started = process_time()
    shards = deal(labels, 10_000, 0.5, 2, source())
    assert len(shards) == 10_000
    assert process_time() - started < 5
