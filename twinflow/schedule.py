"""The times a sampler visits, from noise (near 1) down to data (0).  Source: UCGM (arXiv 2505.07447), section 3.3."""

import torch
from torch import Tensor

NO_WARP = (1.0, 1.0, 1.0)


def kumaraswamy(s: Tensor, a: float, b: float, c: float) -> Tensor:
    """Warp of [0, 1] onto itself, (1 - (1 - s^a)^b)^c; a = b = c = 1 leaves s as it is."""
    return (1 - (1 - s**a) ** b) ** c


def times(
    steps: int,
    start_gap: float = 0.001,
    end_gap: float = 0.6,
    warp: tuple[float, float, float] = NO_WARP,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """`steps` decreasing times and the final 0, shape (steps + 1,).

    start_gap keeps the first time below 1.  end_gap is the last time before 0: few-step models take a long last step;
    0 spreads the steps evenly down to 0.  warp is Kumaraswamy's (a, b, c).  dtype float64 is exact; the released
    sampler computes in the dtype of its latents, which another dtype reproduces.
    Raises ValueError for steps < 1, gaps outside [0, 1] or that cross, and a warp that is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected 1 or more")
    if not (0 <= start_gap < 1 and 0 <= end_gap <= 1 and (steps == 1 or start_gap < 1 - end_gap)):
        raise ValueError(
            f"gaps are start {start_gap}, end {end_gap}; expected both in [0, 1] and 1 - start above end, "
            "since the first time is 1 - start and the last one before 0 is end"
        )
    if len(warp) != 3 or min(warp) <= 0:
        raise ValueError(f"warp is {tuple(warp)}; expected three positive numbers a, b, c (1, 1, 1 is no warp)")
    if end_gap:
        s = torch.linspace(start_gap, 1 - end_gap, steps, dtype=torch.float64)
    else:  # evenly down to 0: one point more, and the last one, 0 itself, is appended below
        s = torch.linspace(start_gap, 1, steps + 1, dtype=torch.float64)[:-1]
    s = kumaraswamy(s.to(dtype), *warp)
    return torch.cat([1 - s, s.new_zeros(1)])
