"""The velocity fields of a model around one picture: what (t, t), (-t, -t) and (t, 0) say at several times.

At a point x_t = (1 - t) x + t z every velocity v stands for the picture x_t - t v.  x is a picture that is given, or the
model's own sample of one step, as in the objective (equations 1 and 8 of docs/method.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..twinflow import path
from ..twinflow.presets import SAMPLING
from .comfy_sampler import with_target
from .inputs import check_flow, check_prompts
from .sampler import fitted
from .setups import check_scale
from .time_conditioning import time_conditioning_of

SEEDS = 1 << 64


@dataclass(frozen=True)
class Row:
    """At the time t: the point x_t, and the pictures that its real and fake velocity and the jump to r = 0 stand for.

    Latents of the model (1, C, ...), or what is made of each.  fake, jump: None for a model that knows one time only.
    """

    t: float
    point: Tensor
    real: Tensor
    fake: Tensor | None = None
    jump: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Row":
        fake, jump = (x if x is None else change(x) for x in (self.fake, self.jump))
        return Row(self.t, change(self.point), change(self.real), fake, jump)


@torch.no_grad()
def fields(model, positive, latent: dict, seed: int, times: Sequence[float]) -> list[Row]:
    """A row for each time.  Raises ValueError for inputs of another model."""
    check_flow(model.model, model.get_model_object("model_sampling"))
    check_prompts(model.model, "positive", positive)
    check_scale(model.model)
    latent, samples = fitted(model, latent)
    samples, row = samples[:1], latent.get("batch_index", [0])[:1]
    noise, again = (comfy.sample.prepare_noise(samples, (seed + i) % SEEDS, row) for i in range(2))
    time = replace(time_conditioning_of(model.model, model.model_options), branch="real")
    start, rows = float(SAMPLING[1].times()[0]), []
    bar = comfy.utils.ProgressBar((1 if time.rule == "off" else 3) * len(times))

    def look(wrapped, x, sigmas, extra_args=None, callback=None, disable=None):
        extra = dict(extra_args or {})
        options = extra.pop("model_options", {})

        def data(x_t: Tensor, t: float, r: float, branch: str = "real") -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            target = with_target(options, replace(time, branch=branch), x_t.new_tensor([r]))
            return wrapped(x_t, x_t.new_tensor([t]), **extra, model_options=target)

        def counted(*args) -> Tensor:
            found = data(*args)
            bar.update(1)
            return found.float().cpu()

        x, z = wrapped.latent_image, again.to(x)
        if not torch.count_nonzero(x):
            x = data(wrapped.noise, start, 0.0)
        for t in times:
            x_t = path.interpolate(x, z, z.new_tensor([t]))
            both = () if time.rule == "off" else (counted(x_t, t, t, "twin"), counted(x_t, t, 0.0))
            rows.append(Row(t, x_t.float().cpu(), counted(x_t, t, t), *both))
        return x

    sampler, sigmas = comfy.samplers.KSAMPLER(look), torch.tensor([start, 0.0])
    comfy.sample.sample_custom(model, noise, 1.0, sampler, sigmas, positive, positive, samples, disable_pbar=True, seed=seed)
    return rows
