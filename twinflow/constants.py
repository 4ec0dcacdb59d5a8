"""The constants of the objective, as one record.

Source: TwinFlow (arXiv 2512.05150) and its released code; the defaults are the published values, with guidance off.
docs/method.md gives the equations in which each of them stands.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .roles import NEAR, ROLES


@dataclass(frozen=True)
class Objective:
    """Every constant of the objective.  Raises ValueError for a value, or a pair of values, that has no meaning.

    roles: share of each role (twinflow.roles).
    order: steps in which the teacher is integrated from t to r (the N of RCGM); 0 is flow matching.
    dt: finite time step of the consistency target.
    reach: how far below t the target time r may lie, as a share of t (the released "consistency ratio").
    guidance_ratio: how much of (conditional - unconditional) is added to the target of the rows with low < t < high
        (guidance_range, both ends excluded).
    target: the velocity that is learnt: "data" (noise - data), or "guide" (the guide's own velocity, in the guided rows;
        guidance_ratio is its CFG scale then).
    times: distribution of t, "beta" (time_beta: a, b) or "logit-normal" (time_normal: mean, deviation); the draws are
        then multiplied by time_scale.  stratified: spread the uniform numbers behind t evenly over the batch.
    rectify: weight of the rectification of the one_step rows; 0 is off.
    loss: distance between velocity and target, "barron" (of shape barron_alpha and scale barron_scale) or "l2".
    image_free: train on the student's own one-step samples; the data are not read.
    """

    roles: Mapping[str, float] = field(default_factory=lambda: dict(one_step=1, multi_step=1, any_step=1, fake=1))
    order: int = 2
    dt: float = 0.01
    reach: float = 1.0
    guidance_ratio: float = 0.0
    guidance_range: tuple[float, float] = (0.0, 1.0)
    target: Literal["data", "guide"] = "data"
    times: Literal["beta", "logit-normal"] = "beta"
    time_beta: tuple[float, float] = (1.0, 1.0)
    time_normal: tuple[float, float] = (0.0, 1.0)
    time_scale: float = 1.0
    stratified: bool = False
    rectify: float = 0.5
    loss: Literal["barron", "l2"] = "barron"
    barron_alpha: float = 1.0
    barron_scale: float = 1e-3
    image_free: bool = False

    def __post_init__(self) -> None:
        def expect(ok: bool, name: str, what: str) -> None:
            if not ok:
                raise ValueError(f"objective: {name} is {getattr(self, name)!r}; expected {what}")

        # every comparison is false for NaN
        known = set(self.roles) <= set(ROLES) and all(0 <= w < math.inf for w in self.roles.values())
        played = {role for role, w in self.roles.items() if w > 0}
        expect(known and bool(played), "roles", f"finite weights >= 0, one above 0, of {', '.join(ROLES)}")
        expect(isinstance(self.order, int) and self.order >= 0, "order", "a whole number, 0 (flow matching) or more")
        learns = self.order > 0 or bool(played & set(NEAR))
        expect(learns, "roles", f"one of {', '.join(NEAR)} with order 0, which learns from rows with r near t only")
        expect(0 < self.dt < 1, "dt", "a time step above 0 and below 1")
        expect(0 <= self.reach <= 1, "reach", "a share between 0 and 1")
        expect(0 <= self.guidance_ratio < math.inf, "guidance_ratio", "0 (off) or more, finite")
        low, high = self.guidance_range
        expect(-math.inf < low < high < math.inf, "guidance_range", "two finite times, the lower one first")
        expect(self.target in ("data", "guide"), "target", "'data' or 'guide'")
        expect(self.times in ("beta", "logit-normal"), "times", "'beta' or 'logit-normal'")
        expect(all(0 < k < math.inf for k in self.time_beta), "time_beta", "two positive numbers")
        uniform = tuple(self.time_beta) == (1, 1)
        expect(uniform or not (self.stratified and self.times == "beta"), "time_beta", "1, 1 for stratified times")
        mean, deviation = self.time_normal
        finite = math.isfinite(mean) and 0 < deviation < math.inf
        expect(finite, "time_normal", "a finite mean and a positive deviation")
        expect(0 < self.time_scale <= 1, "time_scale", "a number above 0, at most 1")
        expect(0 <= self.rectify < math.inf, "rectify", "0 (off) or more, finite")
        if self.rectify:
            full = f"0 with reach {self.reach:g}: one-step samples are rectified at reach 1 only; set rectify 0, or reach 1"
            expect(self.reach == 1, "rectify", full)
            pair = "0 without the roles one_step and fake, which it compares: set rectify 0, or give both a share in roles"
            expect({"one_step", "fake"} <= played, "rectify", pair)
        expect(self.loss in ("barron", "l2"), "loss", "'barron' or 'l2'")
        expect(-math.inf < self.barron_alpha <= 2, "barron_alpha", "a finite number, at most 2")
        expect(0 < self.barron_scale < math.inf, "barron_scale", "a finite number above 0")
