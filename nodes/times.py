"""The times t and r of a step as a sampler passes them to a model: one frozen value.

The rule is the model's time conditioning:

    two    a second time embedder (t, r): see nodes/backbones
    fold   one time embedder, asked at t - r / 2
    off    one time embedder, asked at t; the target time r is not used

The twin branch asks for the field of the model's own samples, (-t, -t), whatever the target time.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from ..twinflow.path import widest
from ..twinflow.presets import Sampling
from ..twinflow.time_embedding import fold

KEY = "twinflow"


@dataclass(frozen=True, eq=False)
class TimeConditioning:
    """rule, branch: see above.  target: r, shape (B,) or (1,); None when the sampler gives none.

    recommended: the sampling settings that the file's own metadata names, best first.
    unfolded: the LoRA, where a loader that cannot fold applied one that was trained with the rule fold.
    """

    rule: str = "two"
    branch: str = "real"
    target: Tensor | None = None
    recommended: tuple[Sampling, ...] = ()
    unfolded: str = ""

    def with_target(self, target: Tensor) -> "TimeConditioning":
        return replace(self, target=target)

    def pair(self, timesteps: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """(t, r), each (B,), for a model with two time embedders, from the timesteps = scale * t that ComfyUI gives it.

        Without a target it is the velocity at t.
        """
        t = timesteps
        r = t if self.target is None else tiled(self.target * scale, t)  # scaled alike, so that r = t stays equal
        if scale != 1:
            t, r = widest(t) / scale, widest(r) / scale
        return (-t, -t) if self.branch == "twin" else (t, r)

    def single(self, t: Tensor) -> Tensor:
        """The one time for a model with one time embedder.  Without a target it is t, as after the stock LoRA loader."""
        if self.branch == "twin":
            return fold(-t, -t) if self.rule == "fold" else -t
        if self.rule == "off" or self.target is None:
            return t
        return fold(t, tiled(self.target, t))


def tiled(target: Tensor, t: Tensor) -> Tensor:
    """The targets for every row of t: ComfyUI stacks prompt and negative prompt, each with the whole batch."""
    return target.reshape(-1).to(t).repeat(t.shape[0] // target.numel())
