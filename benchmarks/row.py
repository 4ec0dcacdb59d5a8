"""A line of the table that `make bench` prints: a measure, its bound, what came out here, and how sure that is."""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "BENCH_ROWS"  # in the environment: where end() leaves the rows


@dataclass(frozen=True)
class Row:
    """value: a ratio, or in the unit that the measure names.  noise: by which it may be off."""

    measure: str
    bound: float
    value: float
    noise: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the bound is kept, or missed by no more than the noise."""
        return self.value - self.noise <= self.bound

    def __str__(self) -> str:
        return f"{self.measure}: {self.value:.3f} +- {self.noise:.3f} (at most {self.bound:g}){'' if self.ok else ', missed'}"


def of_ratios(measure: str, bound: float, ratios: Sequence[float]) -> Row:
    """Of two that took turns, a ratio a turn: the median, and twice its standard error by the median deviation."""
    middle = statistics.median(ratios)
    deviation = 1.4826 * statistics.median(abs(ratio - middle) for ratio in ratios)
    return Row(measure, bound, middle, 2 * 1.2533 * deviation / len(ratios) ** 0.5)


def of_fastest(measure: str, bound: float, ours: Sequence[float], theirs: Sequence[float]) -> Row:
    """Of two that took turns, for whatever else a computer does only adds: the smallest by the smallest.  The noise is how far
    the next ones are from them."""
    (a, next_a), (b, next_b) = (sorted([*own, max(own)])[:2] for own in (ours, theirs))
    return Row(measure, bound, a / b, a / b * ((next_a - a) / a + (next_b - b) / b))


def end(rows: Sequence[Row]) -> int:
    """Print the rows, leave them for bench.py where that asked, and return the exit code: 1 where one is missed."""
    print(*rows, sep="\n")
    if path := os.environ.get(FILE):
        Path(path).write_text(json.dumps([asdict(row) for row in rows]))
    return int(not all(row.ok for row in rows))
