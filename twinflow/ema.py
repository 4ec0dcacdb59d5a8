"""Exponential moving average of a network's weights, with the warm-up of the released code.

The decay starts at 0 (the first update copies) and approaches its goal by halving the shortfall, slowed by how much is
still missing: d <- d + (1 - d) (goal - d) / 2.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class EMA:
    """Keeps `shadow`, the average of `live`; the same tensors must be passed in the same order.

    goal: the decay that is approached, in [0, 1).  warm_up off uses it from the first update on.
    shadow: tensors to average into (an EMA adapter's own weights); by default detached copies of `live`.
    """

    def __init__(self, live: Iterable[Tensor], goal: float, *, shadow: Iterable[Tensor] | None = None, warm_up: bool = True):
        if not 0 <= goal < 1:
            raise ValueError(f"EMA decay is {goal}; expected 0 or more and below 1 (0.99 averages about 100 updates)")
        self.live = list(live)
        self.shadow = [p.detach().clone() for p in self.live] if shadow is None else list(shadow)
        self.goal, self.decay = goal, 0.0 if warm_up else goal

    @torch.no_grad()
    def update(self) -> None:
        """shadow <- d shadow + (1 - d) live, then the decay d warms up."""
        torch._foreach_mul_(self.shadow, self.decay)
        torch._foreach_add_(self.shadow, [p.detach() for p in self.live], alpha=1 - self.decay)
        self.decay += (1 - self.decay) * (self.goal - self.decay) / 2
