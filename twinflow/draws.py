"""All that chance decides in one training step, as data: the loss is a pure function of it.

Convention: uniform and normal numbers only; what they mean for a row depends on its role (role_times).
Source: the released TwinFlow code (prepare_inputs, dist_match); the logit-normal and the stratified times are additions.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .constants import Objective
from .roles import Roles


class Draws(NamedTuple):
    """One row each: times before they are scaled, the positions of r below t, and the noises."""

    t: Tensor  # (B,) in [0, 1]
    r: Tensor  # (B,) uniform: how far the r of any_step lies below t
    r_near: Tensor  # (B,) uniform: how far the r of multi_step lies below t
    noise: Tensor  # like x: of x_t
    sample_noise: Tensor  # like x: that the student's one-step samples start from (fake rows, image-free training)
    renoise: Tensor  # like x: of the rectification
    renoise_t: Tensor  # (B,) uniform: times of the rectification


def draw(x: Tensor, objective: Objective, generator: torch.Generator) -> Draws:
    """Draws for data x (B, ...), all from this generator, on its device, then moved to x's; float32 or wider."""
    dtype, rows = torch.promote_types(x.dtype, torch.float32), len(x)
    t = draw_times(rows, objective, generator, dtype).to(x.device)
    r, r_near, renoise_t = (_uniform(rows, generator, dtype).to(x.device) for _ in range(3))
    noise, sample_noise, renoise = (
        torch.randn(x.shape, generator=generator, device=generator.device, dtype=dtype).to(x.device) for _ in range(3)
    )
    return Draws(t, r, r_near, noise, sample_noise, renoise, renoise_t)


def draw_times(rows: int, objective: Objective, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """t (rows,) in [0, 1], before time_scale, on the generator's device."""
    if objective.times == "beta" and tuple(objective.time_beta) != (1, 1):
        shapes = (torch.full((rows,), k, device=generator.device, dtype=dtype) for k in objective.time_beta)
        # torch.distributions takes no generator
        a, b = (torch._standard_gamma(k, generator=generator) for k in shapes)  # pyright: ignore[reportPrivateImportUsage]
        return a / (a + b)
    u = _uniform(rows, generator, dtype)
    if objective.stratified:
        stratum = _uniform(rows, generator, dtype).argsort()  # of each row
        u = (stratum + u) / rows
    if objective.times == "beta":
        return u
    mean, deviation = objective.time_normal
    return torch.sigmoid(mean + deviation * torch.special.ndtri(u))


def shifted(draws: Draws, factor: float) -> Draws:
    """With the times t moved towards 1 (factor above 1) or 0, as samplers shift theirs."""
    t = draws.t.clamp(0, 1)
    return draws._replace(t=factor * t / (1 + (factor - 1) * t))


def role_times(draws: Draws, roles: Roles, objective: Objective) -> tuple[Tensor, Tensor]:
    """The times t and r (B,) of every row: both negative for fake rows, 0 <= r <= t for the others."""
    t = draws.t.clamp(0, 1) * objective.time_scale
    r = t - draws.r * objective.reach * t
    r_near = t - draws.r_near * t * min(0.05, objective.reach)
    for role, rows in roles.rows.items():
        if role == "one_step":
            t[rows], r[rows] = 1.0, 0.0
        elif role == "multi_step":
            r[rows] = r_near[rows]
        elif role == "few_step":
            r[rows] = 0.0
        elif role == "fake":
            r[rows] = t[rows] = -t[rows]
    return t, r


def _uniform(rows: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.rand(rows, generator=generator, device=generator.device, dtype=dtype)
