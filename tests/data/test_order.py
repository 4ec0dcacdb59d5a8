"""Batches by number: each in one bucket, every row equally often, nothing but (seed, index) decides."""

from collections import Counter

import pytest
import torch

from trainer.data.order import Order, rows_at
from trainer.seeds import seed_of

BUCKETS = [range(0, 7), range(7, 8), range(8, 31), range(31, 35)]


def bucket_of(row):
    return next(i for i, rows in enumerate(BUCKETS) if row in rows)


@pytest.mark.parametrize("batch", [1, 2, 4, 16, 50])
def test_one_bucket_a_batch_and_every_row_in_its_turn(batch):
    order = Order(BUCKETS)
    batches = [order.batch(i, batch, seed=3) for i in range(35 * 12 // batch)]
    assert all(len({bucket_of(row) for _, row in rows}) == 1 for rows in batches)
    assert all(len(rows) == batch for rows in batches)
    seen = Counter(row for rows in batches for _, row in rows)
    for rows in BUCKETS:  # within a bucket no row is ahead by more than one epoch
        counts = [seen[row] for row in rows]
        assert max(counts) - min(counts) <= 1
        assert abs(sum(counts) / len(rows) - 12) <= 12 * 0.1 + batch / len(rows)
    assert Counter((epoch, row) for rows in batches for epoch, row in rows).most_common(1)[0][1] == 1


def test_buckets_are_mixed_within_an_epoch():
    order = Order([range(0, 50), range(50, 100)])
    buckets = [order.batch(i, 5, seed=0)[0][1] >= 50 for i in range(20)]
    assert sum(buckets) == 10 and buckets != sorted(buckets) and buckets != sorted(buckets, reverse=True)


def test_seed_and_number_decide():
    first, again = Order(BUCKETS), Order(BUCKETS)
    forwards = [first.batch(i, 4, 1) for i in range(40)]
    backwards = [again.batch(i, 4, 1) for i in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert forwards != [first.batch(i, 4, 2) for i in range(40)]


def test_one_bucket_is_the_shuffled_epochs_themselves():
    order = Order([range(10)])
    rows = [row for i in range(5) for _, row in order.batch(i, 4, seed=9)]
    expected = [torch.randperm(10, generator=torch.Generator().manual_seed(seed_of(9, "epoch", e))) for e in range(2)]
    assert rows == torch.cat(expected).tolist()


def test_rows_at_counts_epochs():
    pairs = rows_at(position=5, count=20, total=7, seed=0)
    assert [epoch for epoch, _ in pairs] == [0] * 2 + [1] * 7 + [2] * 7 + [3] * 4
    assert sorted(row for epoch, row in pairs if epoch == 1) == list(range(7))
