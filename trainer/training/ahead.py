"""Batches that are read while the step before is computed, so that the data never hold it up.

A batch is a function of its number alone, so reading early changes nothing; what fails there is raised where it is asked for.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Ahead:
    """The batches of some Data (see loop) by number, one of them ahead.  waited: seconds that take() has taken so far."""

    def __init__(self, data: Any, batch: int, seed: int):
        self.data, self.batch, self.seed, self.waited = data, batch, seed, 0.0
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.coming: tuple[int, Future] | None = None

    def take(self, index: int, then: int | None = None) -> Any:
        """data.batch_at(index, batch, seed).  then: the number that will be asked for next, if any."""
        began = time.perf_counter()
        if self.coming and self.coming[0] == index:
            found = self.coming[1].result()
        else:  # the first, or after a jump
            found = self.data.batch_at(index, self.batch, self.seed)
        self.coming = None
        if then is not None:
            self.coming = then, self.reader.submit(self.data.batch_at, then, self.batch, self.seed)
        self.waited += time.perf_counter() - began
        return found

    def close(self) -> None:
        """Drop what is under way."""
        self.reader.shutdown(wait=False, cancel_futures=True)
