"""Published settings by name: objectives to train with, and how to sample with a given number of network evaluations.

Source: the released TwinFlow code and its model cards; where they disagree (4 steps) the comment beside the row says so.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import schedule
from .objective import Objective
from .sampler import Stochasticity

_TWINFLOW = Objective(guidance_ratio=0.5)

OBJECTIVES: dict[str, Objective] = {
    "twinflow": _TWINFLOW,
    "rcgm": replace(_TWINFLOW, roles=dict(one_step=1, multi_step=1, any_step=1), rectify=0.0),
    "flow-matching": Objective(roles=dict(multi_step=1), order=0, rectify=0.0),
    "lora-1st-order": replace(_TWINFLOW, roles=dict(one_step=1, multi_step=1, few_step=1, fake=1), order=1),
    "lora-2nd-order": _TWINFLOW,
}


@dataclass(frozen=True)
class Sampling:
    """How to sample with `steps` network evaluations; the fields are sampler.sample's and schedule.times'.

    sigmas: times in place of a schedule, steps + 1 of them, down to 0.
    """

    steps: int
    style: str = "few"
    stochasticity: Stochasticity = 0.0
    start_gap: float = 0.001
    end_gap: float = 0.5
    warp: tuple[float, float, float] = schedule.NO_WARP
    order: int = 1
    extrapolation: float = 0.0
    sigmas: tuple[float, ...] = ()

    def times(self) -> Tensor:
        """The schedule, float64; order 2 takes two evaluations a step, so it has half as many."""
        if self.sigmas:
            return torch.tensor(self.sigmas, dtype=torch.float64)
        steps = (self.steps + 1) // 2 if self.order == 2 else self.steps
        return schedule.times(steps, self.start_gap, self.end_gap, self.warp)

    def options(self) -> dict[str, Any]:
        """The keyword arguments of sampler.sample."""
        return {name: getattr(self, name) for name in ("style", "order", "stochasticity", "extrapolation")}

    def to_json(self) -> dict[str, Any]:
        """What the metadata of a weights file holds (`twinflow.sampler`)."""
        values = asdict(self) | {"gaps": [self.start_gap, self.end_gap], "warp": list(self.warp)}
        return {name: values[name] for name in _JSON if name != "sigmas" or self.sigmas}

    @classmethod
    def from_json(cls, values: dict[str, Any] | str) -> "Sampling":
        """The inverse of to_json, also of its text; absent fields take their defaults.  Raises ValueError."""
        values = json.loads(values) if isinstance(values, str) else values
        if not isinstance(values, dict) or not isinstance(values.get("steps"), int) or values.keys() - set(_JSON):
            raise ValueError(f"sampler settings are {values!r}; expected an object with steps and any of {', '.join(_JSON)}")
        values = dict(values)
        gaps = values.pop("gaps", (cls.start_gap, cls.end_gap))
        listed: dict[str, Any] = {"warp": tuple(values.get("warp", cls.warp))}
        listed["sigmas"] = tuple(map(float, values.get("sigmas", ())))
        if (n := len(listed["sigmas"])) not in (0, values["steps"] + 1):
            raise ValueError(f"sampler settings have {n} sigmas for {values['steps']} steps; expected {values['steps'] + 1}")
        return cls(**values | {"start_gap": gaps[0], "end_gap": gaps[1]} | listed)


_JSON = ("steps", "style", "stochasticity", "gaps", "warp", "order", "extrapolation", "sigmas")

SAMPLING: dict[int, Sampling] = {
    1: Sampling(1, "few", 0.0, end_gap=0.7),
    2: Sampling(2, "few", 1.0, end_gap=0.6),
    4: Sampling(4, "few", 1.0, end_gap=0.5),  # elsewhere in the official sources "any", 0.0
    8: Sampling(8, "any", 0.0, end_gap=0.5),
    30: Sampling(30, "multi", 0.0, end_gap=0.0, warp=(1.17, 0.8, 1.1)),
}


def near(steps: int, settings: Sequence[Sampling]) -> Sampling:
    """The setting for so many steps: the one among these or, where there is none, the nearest with other steps."""
    best = min(settings, key=lambda s: abs(math.log(s.steps / steps)))
    return replace(best, steps=steps, sigmas=best.sigmas if best.steps == steps else ())
