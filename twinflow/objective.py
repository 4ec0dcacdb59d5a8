"""The TwinFlow objective (arXiv 2512.05150, section 3 and appendix) on one batch.

The batch is shared out over roles.  Every row regresses v(x_t, t, r) on a target that its role sets:

    one_step    t = 1, r = 0           consistency target; also rectified against the fake twin
    multi_step  r just below t         consistency target, close to flow matching
    any_step    r uniform in [0, t]    consistency target
    few_step    r = 0                  consistency target
    fake        (-t, -t)               flow matching on the model's own one-step samples

Randomness is data: `draw` makes every number that is drawn, `loss` is a pure function of them.  Forwards are made only
for the rows that need them: no guidance where its range drops a row, no consistency for fake rows nor where the
teacher's journey is empty.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import path
from .roles import NEAR, ROLES, Roles

Condition = tuple[Tensor, ...]  # any tensors whose first dimension is the batch


class Velocity(Protocol):
    """The average velocity from time t (B,) at x_t (B, ...) to the target time r (B,); r = t is the instantaneous one."""

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Condition) -> Tensor: ...


@dataclass(frozen=True)
class Objective:
    """Every constant of the method.  Raises ValueError for a value that has no meaning.

    roles: share of each role.  order: steps of the teacher's journey from t down to r (RCGM order N); 0 is flow matching.
    difference: finite time step of the consistency target.  reach: how far below t the target time may lie, as a share
    of t (the released "consistency ratio").  guidance: how much of (conditional - unconditional) is added to the target,
    in rows with low < t < high strictly (guidance_range).  target: what velocity is learnt, "data" (noise - data) or the
    "guide"'s own, in the rows that are guided; guidance is a CFG scale then.
    times: t ~ "beta" (time_beta) or "logit-normal" (mean and deviation, time_normal), then times time_scale; stratified
    spreads the uniform numbers behind t evenly over the batch.  rectify: weight of the rectification of the one_step
    rows; 0 is none.  loss: "barron" (its alpha and scale) or "l2".  image_free: train on the model's own one-step
    samples; the data are not looked at.
    """

    roles: Mapping[str, float] = field(default_factory=lambda: dict(one_step=1, multi_step=1, any_step=1, fake=1))
    order: int = 2
    difference: float = 0.01
    reach: float = 1.0
    guidance: float = 0.0
    guidance_range: tuple[float, float] = (0.0, 1.0)
    target: str = "data"
    times: str = "beta"
    time_beta: tuple[float, float] = (1.0, 1.0)
    time_normal: tuple[float, float] = (0.0, 1.0)
    time_scale: float = 1.0
    stratified: bool = False
    rectify: float = 0.5
    loss: str = "barron"
    barron_alpha: float = 1.0
    barron_scale: float = 1e-3
    image_free: bool = False

    def __post_init__(self):
        def expect(ok, name, what):
            if not ok:
                raise ValueError(f"objective: {name} is {getattr(self, name)!r}; expected {what}")

        known = set(self.roles) <= set(ROLES) and all(w >= 0 for w in self.roles.values())
        expect(known and sum(self.roles.values()) > 0, "roles", f"weights >= 0, one above 0, of {', '.join(ROLES)}")
        expect(self.order >= 0, "order", "0 (flow matching) or more")
        learns = self.order or any(self.roles.get(role) for role in NEAR)
        expect(learns, "roles", f"one of {', '.join(NEAR)} with order 0, which learns from rows with r near t only")
        expect(0 < self.difference < 1, "difference", "a time step above 0 and below 1")
        expect(0 <= self.reach <= 1, "reach", "a share between 0 and 1")
        expect(self.target in ("data", "guide"), "target", "'data' or 'guide'")
        expect(self.guidance >= 0, "guidance", "0 (off) or more")
        expect(self.times in ("beta", "logit-normal"), "times", "'beta' or 'logit-normal'")
        expect(min(self.time_beta) > 0, "time_beta", "two positive numbers")
        uniform = tuple(self.time_beta) == (1, 1)
        expect(uniform or not (self.stratified and self.times == "beta"), "time_beta", "1, 1 for stratified times")
        expect(self.time_normal[1] > 0, "time_normal", "a mean and a positive deviation")
        expect(0 < self.time_scale <= 1, "time_scale", "a number above 0, at most 1")
        expect(self.rectify >= 0, "rectify", "0 (off) or more")
        expect(self.loss in ("barron", "l2"), "loss", "'barron' or 'l2'")
        expect(self.barron_alpha <= 2, "barron_alpha", "at most 2")
        expect(self.barron_scale > 0, "barron_scale", "a number above 0")


class Draws(NamedTuple):
    """All that chance decides in one step, one row each: t before scaling, positions of r, and the noises."""

    t: Tensor  # (B,) in [0, 1]
    r: Tensor  # (B,) uniform: how far any_step's r lies below t
    near: Tensor  # (B,) uniform: how far multi_step's r lies below t
    noise: Tensor  # like x: of x_t
    start: Tensor  # like x: of the one-step samples, for fake rows and image-free training
    again: Tensor  # like x: of the rectification
    again_t: Tensor  # (B,) uniform: times of the rectification


def draw(x: Tensor, objective: Objective, generator: torch.Generator) -> Draws:
    """Draws for a batch like x (B, ...), all from this generator, on its device, then moved to x; at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    here = dict(device=generator.device, dtype=dtype, generator=generator)
    t = draw_times(len(x), objective, here).to(x.device)
    uniform = [torch.rand(len(x), **here).to(x.device) for _ in range(3)]
    normal = [torch.randn(x.shape, **here).to(x.device) for _ in range(3)]
    return Draws(t, uniform[0], uniform[1], *normal, uniform[2])


def draw_times(rows: int, objective: Objective, here: dict) -> Tensor:
    """t (rows,) in [0, 1], before time_scale; `here` says on what device, in what dtype and from what generator."""
    if objective.times == "beta" and tuple(objective.time_beta) != (1, 1):
        where = {name: here[name] for name in ("device", "dtype")}
        a, b = (
            torch._standard_gamma(torch.full((rows,), k, **where), generator=here["generator"]) for k in objective.time_beta
        )
        return a / (a + b)
    u = torch.rand(rows, **here)
    if objective.stratified:
        order = torch.rand(rows, **here).argsort()  # which row gets which stratum
        u = (order + u) / rows
    if objective.times == "beta":
        return u
    mean, deviation = objective.time_normal
    return torch.sigmoid(mean + deviation * torch.special.ndtri(u))


def role_times(draws: Draws, roles: Roles, objective: Objective) -> tuple[Tensor, Tensor]:
    """The times t and r (B,) of every row; negative for fake rows."""
    t = draws.t.clamp(0, 1) * objective.time_scale
    r = t - draws.r * objective.reach * t
    near = t - draws.near * t * min(0.05, objective.reach)
    for role, rows in roles.rows.items():
        if role == "one_step":
            t[rows], r[rows] = 1.0, 0.0
        elif role == "multi_step":
            r[rows] = near[rows]
        elif role == "few_step":
            r[rows] = 0.0
        elif role == "fake":
            r[rows] = t[rows] = -t[rows]
    return t, r


class Loss(NamedTuple):
    """total: what to call backward on.  terms: detached parts for the log, by role, and "rectify"."""

    total: Tensor
    terms: dict[str, Tensor]


def loss(
    student: Velocity,
    x: Tensor,
    cond: Condition,
    uncond: Condition,
    objective: Objective,
    roles: Roles,
    draws: Draws,
    *,
    teacher: Velocity | None = None,
    guide: Velocity | None = None,
    alike: bool = False,
) -> Loss:
    """The TwinFlow loss of one (micro-)batch of data x (B, ...).

    teacher: whose journey the consistency target follows (the EMA); None: the student itself, without gradient.
    guide: whose guidance is added to the target (a frozen base); None: the teacher.
    cond, uncond: tensors with the batch first.  With several micro-batches take the mean of their totals.
    alike: make every forward that the roles ask for, also where the times leave no row for it; processes among which
    the weights are sharded must.
    """
    teacher = teacher or student
    guide = guide or teacher
    t, r = role_times(draws, roles, objective)
    real = t >= 0
    if "fake" in roles.rows:
        real[roles.rows["fake"]] = False
    own = torch.ones_like(real) if objective.image_free else ~real
    x = with_own_samples(student, x.to(t.dtype), own, draws.start, cond)
    x_t = path.interpolate(x, draws.noise, t)
    v = student(x_t, t, r, cond).to(t.dtype)

    target = guided(path.velocity(x, draws.noise), guide, x_t, t, real, cond, uncond, objective, alike)
    if objective.order and objective.reach:
        target = consistent(v.detach(), target, teacher, x_t, t, r, real, cond, objective, alike)
    weight = torch.where(real, torch.tan((1 - (t - r).abs()) * math.pi / 2.5) + 1, 1.0)
    by_row = distance(v, target, objective) * weight
    terms = {role: by_row[rows].mean().detach() for role, rows in roles.rows.items()}

    learning = tuple(objective.roles) if objective.order else NEAR
    total = mean_over(learning, by_row, roles)
    if objective.rectify and objective.reach == 1 and "one_step" in roles.rows:
        rows = roles.rows["one_step"]
        data, _ = path.endpoints(x_t[rows], v[rows].detach(), t[rows])
        gap = twin_gap(student, data, draws.again[rows], draws.again_t[rows], select(cond, rows))
        rectified = torch.zeros_like(by_row)
        rectified[rows] = distance(v[rows], v[rows].detach() - gap, objective)
        terms["rectify"] = rectified[rows].mean().detach()
        total = total + objective.rectify * mean_over(("one_step",), rectified, roles)
    return Loss(total, terms)


def select(cond: Condition, rows) -> Condition:
    return tuple(c[rows] for c in cond)


def some(rows: Tensor, alike: bool) -> Tensor:
    """These rows (B,) bool; the first one where there is none and a forward must be made all the same."""
    if alike and not rows.any():
        rows = rows.clone()
        rows[0] = True
    return rows


def mean_over(learning: tuple[str, ...], by_row: Tensor, roles: Roles) -> Tensor:
    """Mean over the rows of these roles in the whole accumulated batch, as far as this part of it goes."""
    share = sum(roles.share.get(role, 0.0) for role in learning)
    rows = [by_row[roles.rows[role]].sum() for role in learning if role in roles.rows]
    return (sum(rows) if rows else by_row.sum() * 0) / (len(by_row) * share)


@torch.no_grad()
def with_own_samples(student: Velocity, x: Tensor, own: Tensor, start: Tensor, cond: Condition) -> Tensor:
    """x with the rows marked in `own` (B,) replaced by the student's one-step samples from the noise `start`."""
    if not own.any():
        return x
    noise, one = start[own], start.new_ones(int(own.sum()))
    data, _ = path.endpoints(noise, student(noise, one, torch.zeros_like(one), select(cond, own)).to(x.dtype), one)
    x = x.clone()
    x[own] = data
    return x


@torch.no_grad()
def guided(target: Tensor, guide: Velocity, x_t, t, real, cond, uncond, objective: Objective, alike: bool = False) -> Tensor:
    """The target (B, ...) pushed along classifier-free guidance in the rows whose t lies in the guidance range.

    "data": target + g (v_c - v_u).  "guide": v_u + g (v_c - v_u), the released code's image-free form.
    """
    g, (low, high) = objective.guidance, objective.guidance_range
    rows = real & (low < t) & (t < high)
    asked = some(rows, alike)
    if (objective.target == "data" and not g) or not asked.any():
        return target
    x, t, c, u = x_t[asked], t[asked], select(cond, asked), select(uncond, asked)
    if objective.target == "guide" and g in (0.0, 1.0):
        wanted = guide(x, t, t, c if g else u).to(target.dtype)
    else:
        both = tuple(torch.cat(pair) for pair in zip(c, u, strict=True))
        v_c, v_u = guide(torch.cat([x, x]), torch.cat([t, t]), torch.cat([t, t]), both).to(target.dtype).chunk(2)
        wanted = (v_u if objective.target == "guide" else target[asked]) + g * (v_c - v_u)
    target = target.clone()
    target[rows] = wanted[rows[asked]]
    return target


@torch.no_grad()
def consistent(
    v: Tensor, target: Tensor, teacher: Velocity, x_t, t, r, real, cond, objective: Objective, alike: bool = False
) -> Tensor:
    """Recursive consistency (RCGM): agree with the teacher's own `order`-step journey from t - difference down to r.

    v, target (B, ...); fake rows keep their target.  A row with less than one difference between t and r has no journey
    left, and its residual is v - target.
    """
    step, order = objective.difference, objective.order
    residual = v - target
    far = real & (t >= r + step)
    asked = some(far, alike)
    if asked.any():
        x, t, r, c = (x_t - step * target)[asked], t[asked], r[asked], select(cond, asked)
        start = torch.maximum(t - step, r)
        times = [start * (1 - i / order) + r * (i / order) for i in range(order + 1)]
        journey = torch.zeros_like(x)
        for t_from, t_to in pairwise(times):
            u = teacher(x, t_from, t_to, c).to(x.dtype)
            x = path.interpolate(*path.endpoints(x, u, t_from), t_to)
            journey = journey + u * path.like(t_from - t_to, x)
        found = v[asked] * path.like((t - r) / step, x) - journey / step - target[asked]
        residual[far] = found[far[asked]]
    wanted = v - residual.clamp(-1, 1)
    return torch.where(path.like(real, v), wanted, target)


@torch.no_grad()
def twin_gap(student: Velocity, data: Tensor, noise: Tensor, t: Tensor, cond: Condition, limit: float = 1.0) -> Tensor:
    """How far the fake twin's velocity is from the real one at data (B, ...) re-noised to t (B,), at most `limit`."""
    x_t = path.interpolate(data, noise, t)
    both = tuple(torch.cat([c, c]) for c in cond)
    times = torch.cat([-t, t])
    fake, real = student(torch.cat([x_t, x_t]), times, times, both).to(data.dtype).chunk(2)
    return (fake - real).clamp(-limit, limit)


def distance(v: Tensor, target: Tensor, objective: Objective) -> Tensor:
    """Per-row loss (B,): the mean squared error m, or Barron's robust form of it, whose factor is held constant."""
    m = (v - target).square().flatten(1).mean(1)
    if objective.loss == "l2":
        return m
    a, s = objective.barron_alpha, objective.barron_scale
    if abs(a - 2) < 1e-5:
        return m / s
    return m * (m.detach() / (s**2 + 1e-8) / abs(a - 2) + 1) ** ((a - 2) / 2) / s
