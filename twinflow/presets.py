"""Published settings by name: objectives to train with, and how to sample with a given number of network evaluations.

Source: the released TwinFlow code and its model cards; where they disagree (4 steps) the comment beside the row says so.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import schedule
from .objective import Objective
from .plain_json import loads, one_line
from .sampler import Stochasticity, check_sampling

_TWINFLOW = Objective(guidance_ratio=0.5)

OBJECTIVES: dict[str, Objective] = {
    "twinflow": _TWINFLOW,
    "rcgm": replace(_TWINFLOW, roles=dict(one_step=1, multi_step=1, any_step=1), rectify=0.0),
    "flow-matching": Objective(roles=dict(multi_step=1), order=0, rectify=0.0),
    "lora-1st-order": replace(_TWINFLOW, roles=dict(one_step=1, multi_step=1, few_step=1, fake=1), order=1),
    "lora-2nd-order": _TWINFLOW,
}


MOST_STEPS = 10_000  # of a file's settings


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
        values = loads(values) if isinstance(values, str) else values
        if not isinstance(values, dict) or type(values.get("steps")) is not int or values.keys() - set(_JSON):
            found = one_line(repr(values), 100)
            raise ValueError(f"sampler settings are {found}; expected an object with steps and any of {', '.join(_JSON)}")
        values = {"gaps": (cls.start_gap, cls.end_gap), "warp": cls.warp, "sigmas": ()} | values
        if not 1 <= (steps := values["steps"]) <= MOST_STEPS:
            raise ValueError(f"sampler settings have {steps} steps; expected 1 to {MOST_STEPS}")
        for name, counts in {"gaps": (2,), "warp": (3,), "sigmas": (0, steps + 1)}.items():
            own = values[name]
            if not isinstance(own, (list, tuple)) or len(own) not in counts or not all(map(_is_number, own)):
                raise ValueError(f"sampler settings have {name} {one_line(repr(own), 100)}; expected {counts[-1]} numbers")
        for name in ("order", "extrapolation"):
            if not _is_number(values.get(name, 1)):
                raise ValueError(f"sampler settings have {name} {one_line(repr(values[name]), 100)}; expected a number")
        start, end = values.pop("gaps")
        tuples = {"warp": tuple(values["warp"]), "sigmas": tuple(map(float, values["sigmas"]))}
        made = cls(**values | {"start_gap": start, "end_gap": end} | tuples)
        check_sampling(made.times(), **made.options())
        return made


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 2**53  # larger whole numbers do not fit a tensor


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
