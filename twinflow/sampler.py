"""The unified sampler (UCGM-S, arXiv 2505.07447) over a velocity v(x, t, r).

Every step splits x into the data and the noise that the velocity implies, then mixes them again at the next time.  The
style sets the target time r:

    few    r = 0        every step estimates the data in one jump, then re-noises them (fresh noise keeps them diverse)
    any    r = t_next   every step uses the average velocity over that step
    multi  r = t        plain flow matching: Euler steps of the instantaneous velocity
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, Protocol

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


class VelocityField(Protocol):
    """The average velocity from time t (B,) at x (B, ...) to the target time r (B,), of a network with its condition."""

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, /) -> Tensor: ...


def sde_share(t: Tensor, t_next: Tensor) -> Tensor:
    """The share of fresh noise that makes a step from t to t_next one of the reverse SDE: 2 t (t - t_next) / t_next^2."""
    return ((root(t - t_next) * root(2 * t) / t_next) ** 2).clamp(0, 1)  # in the dtype of t, as the released code does


def root(x: Tensor | float) -> Tensor | float:
    """The square root, correctly rounded: torch's float32 one is off by a bit on some processors."""
    return x.double().sqrt().to(x.dtype) if isinstance(x, Tensor) else x**0.5


def check_sampling(times: Tensor, style: str, order: int, stochasticity: Stochasticity, extrapolation: float) -> None:
    """Raises ValueError, naming the value and what was expected, for settings that have no meaning."""
    if style not in TARGETS:
        raise ValueError(f"style is {style!r}; expected one of {', '.join(STYLES)}")
    if order not in (1, 2):
        raise ValueError(f"order is {order}; expected 1 or 2")
    if isinstance(stochasticity, str):
        if stochasticity not in ("sde", "sde-first"):
            raise ValueError(f"stochasticity is {stochasticity!r}; expected a share between 0 and 1, 'sde' or 'sde-first'")
    elif not 0 <= stochasticity <= 1:
        raise ValueError(f"stochasticity is {stochasticity}; expected a share between 0 and 1, 'sde' or 'sde-first'")
    if not 0 <= extrapolation <= 1:  # above 1 every step moves further than the one before, without end
        raise ValueError(f"extrapolation is {extrapolation}; expected 0 to 1")
    fall = times.ndim == 1 and len(times) > 1 and bool((times.diff() < 0).all() and times[-1] >= 0)  # false for NaN
    if not (fall and times[0].isfinite()):
        raise ValueError(f"times are {times.tolist()}; expected two or more, decreasing, none below 0")


@torch.no_grad()
def sample(
    velocity: VelocityField,
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
    """Integrate noise x (B, ...) from times[0] down to times[-1]; returns x there, in the dtype of x.

    velocity(x, t, r) gets t and r as (B,) in the dtype of x.  Between the steps x is kept in float64 (in float32 on a
    device without float64).
    stochasticity is the share of the noise that is drawn afresh by noise_like(x), once a step: a constant, "sde"
    (recomputed every step) or "sde-first" (the released code's: computed at the first step, then kept).
    extrapolation moves both estimates away from those of the step before, from the third step on; a step that ends at
    t = 0 returns the network's own estimate of the data, as in the released code.
    order 2 corrects every step but the last with the noise estimated at its end, at the price of a second evaluation; a step
    that starts from noise alone, at t = 1, ends in that noise and has nothing to correct.
    callback(i, t, x, data) is called at every step, with the network's estimate of the data.
    Raises ValueError as check_sampling does.  x is not changed.
    """
    check_sampling(times, style, order, stochasticity, extrapolation)
    target_time, mixer = TARGETS[style], Mixer(stochasticity, extrapolation, noise_like)
    dtype, x, times = x.dtype, path.widest(x), times.cpu()  # times stay on the host: no step waits for the device
    t_network = times.to(dtype).to(x.device)[:, None].expand(-1, len(x))
    for i, (t, t_next) in enumerate(pairwise(times)):
        r = target_time(t_network[i], t_network[i + 1])
        now = estimate(velocity, x.to(dtype), t_network[i], r)
        if callback:
            callback(i, t, x, now.data)
        noise, x_next = mixer.step(t, t_next, now)
        if order == 2 and i < len(times) - 2 and t < 1:
            noise_next = estimate(velocity, x_next.to(dtype), t_network[i + 1], t_network[i + 1]).noise
            x_next = step_from(x, t, t_next, 0.5 * (noise + noise_next))
        x = x_next
    return x.to(dtype)


class Ends(NamedTuple):
    """The data and the noise (B, ...) that the network sees behind a point."""

    data: Tensor
    noise: Tensor


class Mixer:
    """What the sampler does between two evaluations, with what it keeps of the steps before.

    Hosts with a loop of their own use it alone.  The settings are those of sample.
    """

    def __init__(self, stochasticity: Stochasticity, extrapolation: float, noise_like: Callable[[Tensor], Tensor]):
        self.stochasticity, self.extrapolation, self.noise_like = stochasticity, extrapolation, noise_like
        self.before: Ends | None = None
        self.share: Tensor | float | None = None
        self.steps = 0

    def step(self, t: Tensor, t_next: Tensor, now: Ends) -> tuple[Tensor, Tensor]:
        """The estimated noise (B, ...) at t, and the point at t_next.  now: estimates at t, in the dtype that x is kept in."""
        data, noise = now
        if self.extrapolation and self.before and self.steps > 1 and t_next > 0:
            data, noise = (a + self.extrapolation * (a - b) for a, b in zip(now, self.before, strict=True))
        self.before, self.steps = now, self.steps + 1
        mixed = noise
        if self.stochasticity:
            if self.stochasticity == "sde" or self.share is None:
                given = self.stochasticity
                self.share = sde_share(t, t_next) if isinstance(given, str) else given
            mixed = root(1 - self.share) * noise + root(self.share) * self.noise_like(noise).to(noise)
        return noise, (1 - t_next) * data + t_next * mixed


def estimate(velocity: VelocityField, x: Tensor, t: Tensor, r: Tensor) -> Ends:
    """The data and noise behind x (B, ...) at t (B,), computed in x's dtype as the released code does, then widened."""
    data, noise = path.endpoints(x, velocity(x, t, r), t)
    return Ends(path.widest(data), path.widest(noise))


def step_from(x: Tensor, t: Tensor, t_next: Tensor, noise: Tensor) -> Tensor:
    """The point at t_next of the path that passes x at t < 1 and ends in this noise."""
    keep = (1 - t_next) / (1 - t)
    return x * keep + (t_next - keep * t) * noise
