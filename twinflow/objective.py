"""The TwinFlow objective (arXiv 2512.05150; its consistency target is RCGM's) on one batch.

Every row regresses v(x_t, t, r) on a target that its role sets:

    one_step    t = 1, r = 0           consistency target; also rectified against the fake trajectory
    multi_step  r just below t         consistency target, close to flow matching
    any_step    r uniform in [0, t]    consistency target
    few_step    r = 0                  consistency target
    fake        (-t, -t)               flow matching on the student's own one-step samples

The numbers (1) to (8) are those of the equations in docs/method.md, which names the released function behind each.
Randomness is data: `draw` makes every number that is drawn, `loss` is a pure function of them.  A forward is made only of
the rows that need it: no guidance outside its range, no consistency where the teacher has no interval to integrate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import path
from .constants import Objective
from .draws import Draws, draw, role_times
from .roles import NEAR, Roles

__all__ = ["Batch", "Condition", "Draws", "Loss", "Networks", "Objective", "Velocity", "draw", "loss"]

Condition = tuple[Tensor, ...]  # any tensors whose first dimension is the batch


class Velocity(Protocol):
    """A network: the average velocity from time t (B,) at x_t (B, ...) to the target time r (B,); at r = t the
    instantaneous velocity, at (-t, -t) that of the fake trajectory."""

    def __call__(self, x_t: Tensor, t: Tensor, r: Tensor, cond: Condition, /) -> Tensor: ...


@dataclass(frozen=True)
class Networks:
    """Who is trained, and who sets its targets; only the student's main forward has a gradient.

    teacher: integrated for the consistency target (the EMA); None is the student.
    guide: whose guidance is added to the target (a frozen base); None is the teacher.
    alike: make every forward that the roles ask for, also where the times leave no row for it; needed where the weights
    are sharded among processes, since each forward gathers them from all.
    """

    student: Velocity
    teacher: Velocity | None = None
    guide: Velocity | None = None
    alike: bool = False


@dataclass(frozen=True)
class Batch:
    """A (micro-)batch: data (B, ...), their condition, and the unconditional one in the same shapes."""

    x: Tensor
    cond: Condition
    uncond: Condition


class Loss(NamedTuple):
    """total: what to call backward on.  terms: detached means for the log, by role, and "rectify"."""

    total: Tensor
    terms: dict[str, Tensor]


def loss(networks: Networks, batch: Batch, objective: Objective, roles: Roles, draws: Draws) -> Loss:
    """The TwinFlow loss of one (micro-)batch, whose rows play these roles (share_out) and drew these numbers (draw).

    With several micro-batches take the mean of their totals.  The batch is not changed.
    Raises ValueError where batch, roles and draws are of different numbers of rows.
    """
    _expect_equal_rows(batch, roles, draws)
    student = networks.student
    teacher = networks.teacher or student
    guide = networks.guide or teacher
    t, r = role_times(draws, roles, objective)
    masks = Masks.of(t, r, roles, objective)

    own = lambda rows: one_step_samples(student, draws.sample_noise[rows], select(batch.cond, rows))
    x = on_rows(masks.own, own, batch.x.to(t.dtype))  # (1)
    x_t, target = path.interpolate(x, draws.noise, t), path.velocity(x, draws.noise)  # (2)
    at = Point(x_t, t, r, batch.cond)
    v = at.velocity_of(student)
    now = v.detach()

    if objective.guidance_ratio or objective.target == "guide":
        guided = lambda rows: guided_target(guide, at[rows], select(batch.uncond, rows), target[rows], objective)
        target = on_rows(masks.guided, guided, target, alike=networks.alike)  # (3)
    if objective.order and objective.reach:
        apart = lambda rows: consistency_residual(teacher, at[rows], now[rows], target[rows], objective)
        residual = on_rows(masks.apart, apart, now - target, alike=networks.alike)  # (4)
        target = torch.where(path.like(masks.real, v), now - residual.clamp(-1, 1), target)  # (5)

    weight = torch.where(masks.real, torch.tan((1 - (t - r).abs()) * math.pi / 2.5) + 1, 1.0)  # (6)
    by_row = distance(v, target, objective) * weight  # (7)
    terms = {role: by_row[rows].mean().detach() for role, rows in roles.rows.items()}
    total = mean_of(tuple(roles.share) if objective.order else NEAR, by_row, roles)

    if objective.rectify and "one_step" in roles.rows:
        rows = roles.rows["one_step"]
        data, _ = path.endpoints(x_t[rows], now[rows], t[rows])
        gap = twin_gap(student, data, draws.renoise[rows], draws.renoise_t[rows], select(batch.cond, rows))
        rectified = torch.zeros_like(by_row)
        rectified[rows] = distance(v[rows], now[rows] - gap, objective)  # (8)
        terms["rectify"] = rectified[rows].mean().detach()
        total = total + objective.rectify * mean_of(("one_step",), rectified, roles)
    return Loss(total, terms)


@dataclass(frozen=True)
class Point:
    """Where a network is evaluated: x_t (B, ...), its time t (B,), the target time r (B,), and the condition."""

    x_t: Tensor
    t: Tensor
    r: Tensor
    cond: Condition

    def __getitem__(self, rows: Tensor | slice) -> "Point":
        return Point(self.x_t[rows], self.t[rows], self.r[rows], select(self.cond, rows))

    def velocity_of(self, network: Velocity) -> Tensor:
        return network(self.x_t, self.t, self.r, self.cond).to(self.x_t.dtype)


def velocities_of(network: Velocity, a: Point, b: Point) -> tuple[Tensor, Tensor]:
    """The velocities at both points, in one forward."""
    cond = tuple(torch.cat(pair) for pair in zip(a.cond, b.cond, strict=True))
    both = Point(torch.cat([a.x_t, b.x_t]), torch.cat([a.t, b.t]), torch.cat([a.r, b.r]), cond)
    first, second = both.velocity_of(network).chunk(2)
    return first, second


@torch.no_grad()
def one_step_samples(student: Velocity, noise: Tensor, cond: Condition) -> Tensor:
    """(1)  x = z' - v(z', 1, 0): the data of the fake rows, and of all rows in image-free training."""
    one = noise.new_ones(len(noise))
    data, _ = path.endpoints(noise, Point(noise, one, torch.zeros_like(one), cond).velocity_of(student), one)
    return data


@torch.no_grad()
def guided_target(guide: Velocity, at: Point, uncond: Condition, target: Tensor, objective: Objective) -> Tensor:
    """(3)  target + g (v_c - v_u), with the guide's instantaneous velocities; or, learning the guide's own velocity,
    v_u + g (v_c - v_u)."""
    g, own = objective.guidance_ratio, objective.target == "guide"
    conditional = replace(at, r=at.t)
    unconditional = replace(conditional, cond=uncond)
    if own and g in (0.0, 1.0):  # one of the two is all of it
        return (conditional if g else unconditional).velocity_of(guide)
    v_c, v_u = velocities_of(guide, conditional, unconditional)
    return (v_u if own else target) + g * (v_c - v_u)


@torch.no_grad()
def consistency_residual(teacher: Velocity, at: Point, v: Tensor, target: Tensor, objective: Objective) -> Tensor:
    """(4)  (t - r)/dt v - I/dt - target, where I integrates the teacher from t - dt to r in `order` steps.

    0 where v is the average over [t, r] of the target on [t, t - dt] and of the teacher on [t - dt, r] (RCGM, order N).
    """
    dt, order = objective.dt, objective.order
    x = at.x_t - dt * target
    start = torch.maximum(at.t - dt, at.r)
    times = [start * (1 - i / order) + at.r * (i / order) for i in range(order + 1)]
    integral = torch.zeros_like(x)
    for t, t_next in pairwise(times):
        u = Point(x, t, t_next, at.cond).velocity_of(teacher)
        x = path.interpolate(*path.endpoints(x, u, t), t_next)
        integral = integral + u * path.like(t - t_next, x)
    return v * path.like((at.t - at.r) / dt, x) - integral / dt - target


@torch.no_grad()
def twin_gap(student: Velocity, data: Tensor, noise: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """(8)  v(x_s, -s, -s) - v(x_s, s, s), clamped to [-1, 1], at data (B, ...) that are re-noised to the time t (B,)."""
    real = Point(path.interpolate(data, noise, t), t, t, cond)
    v_fake, v_real = velocities_of(student, replace(real, t=-t, r=-t), real)
    return (v_fake - v_real).clamp(-1, 1)


def distance(v: Tensor, target: Tensor, objective: Objective) -> Tensor:
    """(7)  Per-row loss (B,): the mean squared error m, or Barron's robust form of it, whose factor is held constant."""
    m = (v - target).square().flatten(1).mean(1)
    if objective.loss == "l2":
        return m
    a, s = objective.barron_alpha, objective.barron_scale
    if abs(a - 2) < 1e-5:
        return m / s
    return m * (m.detach() / (s**2 + 1e-8) / abs(a - 2) + 1) ** ((a - 2) / 2) / s


# Which rows.  The equations above know nothing of it.


class Masks(NamedTuple):
    """Rows (B,) bool.  real: all but the fake ones.  own: whose data are the student's samples.  guided: whose time lies
    in the guidance range.  apart: with t - r >= dt, so that the teacher has an interval to integrate."""

    real: Tensor
    own: Tensor
    guided: Tensor
    apart: Tensor

    @classmethod
    def of(cls, t: Tensor, r: Tensor, roles: Roles, objective: Objective) -> "Masks":
        real = torch.ones_like(t, dtype=torch.bool)
        real[roles.rows.get("fake", slice(0))] = False
        own = torch.ones_like(real) if objective.image_free else ~real
        low, high = objective.guidance_range
        return cls(real, own, real & (low < t) & (t < high), real & (t >= r + objective.dt))


def select(cond: Condition, rows: Tensor | slice) -> Condition:
    return tuple(c[rows] for c in cond)


def on_rows(rows: Tensor, formula: Callable[[Tensor], Tensor], values: Tensor, *, alike: bool = False) -> Tensor:
    """`values` (B, ...) with its `rows` (B,) bool replaced by formula(rows), which is not evaluated where there is none.

    alike: evaluate it all the same, at the first row, and drop the result; see Networks.
    """
    evaluated = rows
    if alike and not rows.any():
        evaluated = rows.clone()
        evaluated[0] = True
    if not evaluated.any():
        return values
    found = formula(evaluated)
    values = values.clone()
    values[rows] = found[rows[evaluated]]
    return values


def mean_of(learning: tuple[str, ...], by_row: Tensor, roles: Roles) -> Tensor:
    """Mean over the rows of these roles in the whole accumulated batch, as far as this part of it goes."""
    share = sum(roles.share.get(role, 0.0) for role in learning)
    rows = [by_row[roles.rows[role]].sum() for role in learning if role in roles.rows]
    return (sum(rows[1:], rows[0]) if rows else by_row.sum() * 0) / (len(by_row) * share)


def _expect_equal_rows(batch: Batch, roles: Roles, draws: Draws) -> None:
    played = sum(rows.stop - rows.start for rows in roles.rows.values())
    if not len(batch.x) == played == len(draws.t):
        raise ValueError(
            f"the batch has {len(batch.x)} rows, its roles are shared out over {played}, and its draws are {len(draws.t)}; "
            "expected equal numbers: share_out(len(x), ...) and draw(x, ...)"
        )
