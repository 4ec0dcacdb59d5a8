"""The unified sampler (UCGM-S, arXiv 2505.07447, algorithm 2) over a velocity v(x_t, t, r).

Every step splits x into the data and the noise that the velocity implies, then mixes them again at the next time:

    few    r = 0        each step jumps to the data, then goes back up (needs fresh noise to stay diverse)
    any    r = t_next   each step goes where it is told
    multi  r = t        plain flow matching, the instantaneous velocity
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from . import path

TARGETS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "few": lambda t, t_next: torch.zeros_like(t),
    "any": lambda t, t_next: t_next,
    "multi": lambda t, t_next: t,
}
STYLES = tuple(TARGETS)
Stochasticity = float | str  # a share in [0, 1], "sde" or "sde-first"


def sde_share(t: Tensor, t_next: Tensor) -> Tensor:
    """The share of fresh noise that makes a step from t to t_next one of the reverse SDE: 2 t (t - t_next) / t_next^2."""
    return ((root(t - t_next) * root(2 * t) / t_next) ** 2).clamp(0, 1)  # in the dtype of t, as the released code does


def root(x: Tensor | float) -> Tensor | float:
    """The square root, correctly rounded: torch's float32 one is off by a bit on some processors."""
    return x.double().sqrt().to(x.dtype) if isinstance(x, Tensor) else x**0.5


def check(times: Tensor, style: str, order: int, stochasticity: Stochasticity, extrapolation: float) -> None:
    """Raises ValueError, naming the value and what was expected, for settings that have no meaning."""
    if style not in TARGETS:
        raise ValueError(f"style is {style!r}; expected one of {', '.join(STYLES)}")
    if order not in (1, 2):
        raise ValueError(f"order is {order}; expected 1 or 2")
    if order == 2 and len(times) > 2 and times[0] >= 1:
        raise ValueError(
            f"order 2 divides by 1 - t and starts at t = {float(times[0])}; use a start gap above 0, such as 0.001"
        )
    if isinstance(stochasticity, str):
        if stochasticity not in ("sde", "sde-first"):
            raise ValueError(f"stochasticity is {stochasticity!r}; expected a share between 0 and 1, 'sde' or 'sde-first'")
    elif not 0 <= stochasticity <= 1:
        raise ValueError(f"stochasticity is {stochasticity}; expected a share between 0 and 1, 'sde' or 'sde-first'")
    if extrapolation < 0:
        raise ValueError(f"extrapolation is {extrapolation}; expected 0 or more")
    if times.ndim != 1 or len(times) < 2 or (times.diff() >= 0).any() or times[-1] < 0:
        raise ValueError(f"times are {times.tolist()}; expected two or more, decreasing, none below 0")


@torch.no_grad()
def sample(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    *,
    style: str = "few",
    order: int = 1,
    stochasticity: Stochasticity = 0.0,
    extrapolation: float = 0.0,
    noise_like: Callable[[Tensor], Tensor] = torch.randn_like,
    callback: Callable[[int, Tensor, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Carry noise x (B, ...) from times[0] down to times[-1]; returns x there, in the dtype of x.

    velocity(x, t, r) hears t and r as (B,) in the dtype of x.  The state is kept in float64 between the steps (in float32
    on a device that has no more).
    stochasticity is the share of the noise that is drawn afresh by noise_like(x), once a step: a constant, "sde"
    (recomputed every step) or "sde-first" (the released code's: computed at the first step, then kept).
    extrapolation pushes both estimates on past those of the step before, from the third step on; a step that arrives
    at 0 ends on the model's own estimate of the data, as in the released code.
    order 2 corrects every step but the last with the noise estimated at its end, at the price of a second call.
    callback(i, t, x, data) is told of every step, with the model's estimate of the data.
    Raises ValueError as check does.  x is not changed.
    """
    check(times, style, order, stochasticity, extrapolation)
    target = TARGETS[style]
    dtype, x, times = x.dtype, path.widest(x), times.cpu()  # times stay on the host: no step waits for the device
    heard = times.to(dtype).to(x.device)[:, None].expand(-1, len(x))
    before = share = None
    for i, (t, t_next) in enumerate(pairwise(times)):
        data, noise = now = estimate(velocity, x.to(dtype), heard[i], target(heard[i], heard[i + 1]))
        if callback:
            callback(i, t, x, data)
        if extrapolation and i > 1 and t_next > 0:
            data, noise = (a + extrapolation * (a - b) for a, b in zip(now, before, strict=True))
        before = now
        mixed = noise
        if stochasticity:
            if stochasticity == "sde" or share is None:
                share = sde_share(t, t_next) if isinstance(stochasticity, str) else stochasticity
            mixed = root(1 - share) * noise + root(share) * noise_like(x).to(x)
        x_next = (1 - t_next) * data + t_next * mixed
        if order == 2 and i < len(times) - 2:
            _, noise_next = estimate(velocity, x_next.to(dtype), heard[i + 1], heard[i + 1])
            x_next = step_from(x, t, t_next, 0.5 * (noise + noise_next))
        x = x_next
    return x.to(dtype)


def estimate(velocity, x: Tensor, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """The data and noise behind x (B, ...) at t (B,), computed in x's dtype as the released code does, then widened."""
    data, noise = path.endpoints(x, velocity(x, t, r), t)
    return path.widest(data), path.widest(noise)


def step_from(x: Tensor, t: Tensor, t_next: Tensor, noise: Tensor) -> Tensor:
    """The point at t_next of the path that passes x at t < 1 and ends in this noise."""
    keep = (1 - t_next) / (1 - t)
    return x * keep + (t_next - keep * t) * noise
