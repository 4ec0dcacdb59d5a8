"""Which rows of a batch play which role in the objective.

Convention: consecutive rows for each role, shared out over all rows that are accumulated to one optimiser step, so that
a batch smaller than the number of roles trains them over several micro-batches.
Source: the released TwinFlow code (prepare_inputs), whose rounding loses a role for some batch sizes; this one does not.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

ROLES = ("one_step", "multi_step", "any_step", "few_step", "fake")
NEAR = ("multi_step", "fake")  # roles whose r is t, or just below


class Roles(NamedTuple):
    """rows: which rows of this batch have a role.  share: of the whole batch that is accumulated, not only of this part."""

    rows: dict[str, slice]
    share: dict[str, float]


def share_out(batch: int, weights: Mapping[str, float], *, part: int = 0, parts: int = 1) -> Roles:
    """Rows for each role with a weight above 0, in proportion to the weights and in their order.

    batch: rows of this micro-batch, the `part`-th of `parts` that are accumulated.  Every role gets one row of the
    batch * parts; the largest remainders decide the rest.
    Raises ValueError where there are fewer rows than roles.
    """
    weights = {role: w for role, w in weights.items() if w > 0}
    total, whole, spare = batch * parts, sum(weights.values()), batch * parts - len(weights)
    if spare < 0:
        raise ValueError(
            f"batch {batch} x accumulation {parts} is {total} rows; expected at least {len(weights)}, one for each of the "
            f"roles {', '.join(weights)}: raise the accumulation to {-(-len(weights) // max(batch, 1))} or drop roles"
        )
    exact = [max(0.0, total * w / whole - 1) for w in weights.values()]
    exact = [e * spare / sum(exact) if spare else 0.0 for e in exact]
    sizes = [1 + math.floor(e + 1e-9) for e in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: sizes[i] - 1 - exact[i])
    for i in by_remainder[: total - sum(sizes)]:
        sizes[i] += 1
    return roles_of(dict(zip(weights, sizes, strict=True)), batch, part)


def roles_of(sizes: Mapping[str, int], batch: int, part: int = 0) -> Roles:
    """The roles of micro-batch number `part`, of `batch` rows, given the rows of each role in the accumulated batch."""
    rows, start, first, total = {}, 0, part * batch, sum(sizes.values())
    for role, size in sizes.items():
        low, high = (min(max(edge - first, 0), batch) for edge in (start, start + size))
        if high > low:
            rows[role] = slice(low, high)
        start += size
    return Roles(rows, {role: size / total for role, size in sizes.items()})
