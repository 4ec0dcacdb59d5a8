"""Which rows the n-th batch has: a function of (seed, n) alone, so that resuming is exact and processes need not talk.

Every batch lies in one bucket.  A bucket's rows form an endless sequence of shuffled epochs that is cut into batches, so
none is dropped and none repeated before its time; buckets take turns in proportion to their rows.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..seeds import seed_of


@lru_cache(maxsize=64)
def shuffled(total: int, *address) -> Tensor:
    """0 .. total - 1 in the order that belongs to this address."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed_of(*address)))


def rows_at(position: int, count: int, total: int, seed: int) -> list[tuple[int, int]]:
    """`count` pairs (epoch, row) from this position of an endless sequence of shuffled epochs of `total` rows."""
    pairs = []
    while len(pairs) < count:
        epoch, offset = divmod(position + len(pairs), total)
        rows = shuffled(total, seed, "epoch", epoch)[offset : offset + count - len(pairs)]
        pairs += [(epoch, int(row)) for row in rows]
    return pairs


class Order:
    """buckets: the rows of each, all counted; with one bucket, batch n has the rows from position n * batch on."""

    def __init__(self, buckets: Sequence[Sequence[int]]):
        self.buckets = [list(rows) for rows in buckets if len(rows)]
        self.total = sum(len(rows) for rows in self.buckets)

    def batch(self, index: int, batch: int, seed: int) -> list[tuple[int, int]]:
        """The pairs (epoch of its bucket, row) of batch number `index`, all of one bucket."""
        epoch = index * batch // self.total
        while sum(self._before(epoch + 1, batch)) <= index:
            epoch += 1
        before, after = self._before(epoch, batch), self._before(epoch + 1, batch)
        turns = torch.repeat_interleave(torch.tensor(after) - torch.tensor(before))
        turns = turns[shuffled(len(turns), seed, "buckets", epoch)]
        offset = index - sum(before)
        bucket = int(turns[offset])
        number = before[bucket] + int((turns[:offset] == bucket).sum())
        rows = self.buckets[bucket]
        own = seed if len(self.buckets) == 1 else seed_of(seed, "bucket", bucket)
        return [(epoch, rows[row]) for epoch, row in rows_at(number * batch, batch, len(rows), own)]

    def _before(self, epoch: int, batch: int) -> list[int]:
        """How many batches each bucket has given before this epoch: whole ones only, the rest waits for the next."""
        return [epoch * len(rows) // batch for rows in self.buckets]
