"""Which rows of a batch play which role in the objective.  Roles are shared out over all rows that are accumulated."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

ROLES = ("one_step", "multi_step", "any_step", "few_step", "fake")
NEAR = ("multi_step", "fake")  # roles whose r is t, or just below


class Roles(NamedTuple):
    """rows: which rows of this batch have a role.  share: of the whole batch that is accumulated, not only of this part."""

    rows: dict[str, slice]
    share: dict[str, float]


def share_out(batch: int, weights: Mapping[str, float], *, part: int = 0, parts: int = 1, rounding: str = "fair") -> Roles:
    """Consecutive rows for each role in proportion to the weights, in the order of the weights.

    batch: rows of this micro-batch, the `part`-th of `parts` that are accumulated; the roles are shared out over all
    batch * parts rows, so that a batch smaller than the number of roles trains them over several micro-batches.
    rounding: "fair" (largest remainder; every role with a weight gets a row) or "released" (round each, the last role
    takes what is left, also one of weight 0, and the batch's end cuts off the rest, which loses a role for some sizes).
    Raises ValueError when there are fewer rows than roles.
    """
    if rounding not in ("fair", "released"):
        raise ValueError(f"rounding is {rounding!r}; expected 'fair' or 'released'")
    if rounding == "fair":
        weights = {role: w for role, w in weights.items() if w > 0}
    total, whole, wanted = batch * parts, sum(weights.values()), [role for role, w in weights.items() if w > 0]
    if total < len(wanted):
        raise ValueError(
            f"batch {batch} x accumulation {parts} is {total} rows; expected at least {len(wanted)}, one for each of the "
            f"roles {', '.join(wanted)}: raise the accumulation to {-(-len(wanted) // max(batch, 1))} or drop roles"
        )
    if rounding == "released":
        sizes = [round(total * w / whole) for w in weights.values()]
        sizes[-1] = total - sum(sizes[:-1])
        ends = [min(sum(sizes[: i + 1]), total) for i in range(len(sizes))]
        sizes = [max(0, b - a) for a, b in pairwise([0, *ends])]
    else:
        spare = total - len(weights)
        exact = [max(0.0, total * w / whole - 1) for w in weights.values()]
        exact = [e * spare / sum(exact) if spare else 0.0 for e in exact]
        sizes = [1 + math.floor(e + 1e-9) for e in exact]
        by_remainder = sorted(range(len(sizes)), key=lambda i: sizes[i] - 1 - exact[i])
        for i in by_remainder[: total - sum(sizes)]:
            sizes[i] += 1
    rows, start, first = {}, 0, part * batch
    for role, size in zip(weights, sizes, strict=True):
        low, high = (min(max(edge - first, 0), batch) for edge in (start, start + size))
        if high > low:
            rows[role] = slice(low, high)
        start += size
    return Roles(rows, {role: size / total for role, size in zip(weights, sizes, strict=True)})
