"""The times that a sampler visits, from noise (near 1) down to data (0).

Source: UCGM-S (arXiv 2505.07447) and the released TwinFlow code (sampling_loop); the warp is Kumaraswamy's.
"""

import math

import torch
from torch import Tensor

NO_WARP = (1.0, 1.0, 1.0)


def kumaraswamy(s: Tensor, a: float, b: float, c: float) -> Tensor:
    """Warp of [0, 1] onto itself, (1 - (1 - s^a)^b)^c; a = b = c = 1 leaves s as it is."""
    return (1 - (1 - s**a) ** b) ** c


def times(steps: int, start_gap: float = 0.001, end_gap: float = 0.6, warp: tuple[float, float, float] = NO_WARP) -> Tensor:
    """`steps` decreasing times and the final 0, shape (steps + 1,), float64.

    start_gap keeps the first time below 1.  end_gap is the last time before 0: few-step models take a long last step;
    0 spreads the steps evenly down to 0.  warp is Kumaraswamy's (a, b, c).
    Raises ValueError for steps < 1, gaps outside [0, 1] or that cross, and a warp that is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected 1 or more")
    if not (0 <= start_gap < 1 and 0 <= end_gap <= 1 and (steps == 1 or start_gap < 1 - end_gap)):
        raise ValueError(
            f"gaps are start {start_gap}, end {end_gap}; expected both in [0, 1] and 1 - start above end, "
            "since the first time is 1 - start and the last one before 0 is end"
        )
    if len(warp) != 3 or not all(0 < w < math.inf for w in warp):
        raise ValueError(f"warp is {tuple(warp)}; expected three positive numbers a, b, c (1, 1, 1 is no warp)")
    s = kumaraswamy(positions(steps, start_gap, end_gap), *warp).cummax(0).values  # powers are not rounded monotonically
    return torch.cat([1 - s, s.new_zeros(1)])


def merged(times: Tensor) -> Tensor:
    """The times in float32, as hosts pass them on, without those that coincide there: a step of no length does nothing."""
    return times.float().unique_consecutive()


def positions(steps: int, start_gap: float, end_gap: float) -> Tensor:
    """1 - t at every time but the last, before the warp: evenly spaced, shape (steps,), float64."""
    if end_gap:
        return torch.linspace(start_gap, 1 - end_gap, steps, dtype=torch.float64)
    return torch.linspace(start_gap, 1, steps + 1, dtype=torch.float64)[:-1]  # the point that is left out is t = 0 itself
