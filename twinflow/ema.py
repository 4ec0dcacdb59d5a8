"""Exponential moving average of a network's weights, with the warm-up of the released TwinFlow code (update_ema).

The decay starts at 0 (the first update copies) and approaches its goal by halving the shortfall, slowed by how much is
still missing: d <- d + (1 - d) (goal - d) / 2.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class EMA:
    """Keeps `shadow`, the average of the tensors `live`: detached copies of them, in their order.

    goal: the decay that is approached, in [0, 1).  Raises ValueError for another.
    """

    def __init__(self, live: Iterable[Tensor], goal: float):
        if not 0 <= goal < 1:
            raise ValueError(f"EMA decay is {goal}; expected 0 or more and below 1 (0.99 averages about 100 updates)")
        self.live = list(live)
        self.shadow = [p.detach().clone() for p in self.live]
        self.goal, self.decay = goal, 0.0

    @torch.no_grad()
    def update(self) -> None:
        """shadow <- d shadow + (1 - d) live, then the decay d warms up."""
        torch._foreach_mul_(self.shadow, self.decay)  # pyright: ignore[reportPrivateImportUsage]
        live = [p.detach() for p in self.live]
        torch._foreach_add_(self.shadow, live, alpha=1 - self.decay)  # pyright: ignore[reportPrivateImportUsage]
        self.decay += (1 - self.decay) * (self.goal - self.decay) / 2
