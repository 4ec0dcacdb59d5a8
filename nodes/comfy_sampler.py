"""The unified sampler as ComfyUI calls samplers: fn(model, x, sigmas, extra_args, callback, disable, **options).

sigma is the time t; model(x, sigma) answers with the data, so v = (x - data) / t.
"""

import math

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..twinflow import path
from ..twinflow.fresh_noise import FreshNoise, row_seeds
from ..twinflow.sampler import sample
from ..twinflow.schedule import merged
from .inputs import check_flow, check_latent, check_numbers, check_times
from .setups import check_conditioning, check_scale, check_style, title
from .time_conditioning import time_conditioning_of
from .times import KEY, TimeConditioning

# An empty latent noised from here on is text to image: it starts from noise alone, as the released sampler does.
PURE_NOISE = 0.9
CHECKED = ("cross_attn", "pooled_output", "reference_latents", "strength", "mask", "mask_strength", "guidance")  # of a prompt


def unified_sampler(**options) -> comfy.samplers.KSAMPLER:
    """A SAMPLER; the options are those of twinflow.sampler.sample."""
    return comfy.samplers.KSAMPLER(sample_unified, extra_options=options)


@torch.no_grad()
def sample_unified(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
    extra_args = dict(extra_args or {})
    guider = model.inner_model
    base = guider.inner_model
    times, noise, latent = merged(sigmas.cpu()), model.noise.cpu(), model.latent_image
    check_flow(base, base.model_sampling)
    check_times(times)
    check_inputs(guider, noise, latent, extra_args.get("denoise_mask"))
    check_scale(base)
    model_options = extra_args.pop("model_options", {})
    time = time_conditioning_of(base, model_options)
    check_conditioning(base, time, options["style"], getattr(guider, "cfg", 1.0))
    check_style(options["style"], options.get("stochasticity"), times)
    if len(times) < 2:  # no way to go
        return x
    if times[0] > PURE_NOISE:  # ComfyUI scaled the noise by the first time
        empty = ~latent.flatten(1).any(1).to(x.device)  # row by row, whatever else is in the batch
        x = torch.where(path.like(empty, x), x / times[0].to(x), x)

    def velocity(x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        data = model(x_t, t, **extra_args, model_options=with_target(model_options, time, r))
        return (x_t - data) / path.like(t, x_t)

    with tqdm(total=len(times) - 1, disable=disable) as bar:

        def report(i, t, x_t, data):
            bar.update()
            if callback is not None:
                callback({"i": i, "x": x_t.to(x), "denoised": data.to(x), "sigma": t, "sigma_hat": t})

        fresh = FreshNoise(row_seeds(extra_args.get("seed") or 0, noise))
        out = sample(velocity, x, times, noise_like=fresh, callback=report, **options)
    check_numbers(
        f"what {title(base)} drew",
        out,
        "its file, a LoRA or a prompt is damaged, or its numbers grow too large: choose weight_dtype bfloat16 or float32, "
        "less strength",
    )
    return out


def check_inputs(guider, noise: Tensor, latent: Tensor, mask: Tensor | None) -> None:
    """Raises ValueError, with a name, for NaN in what core's sampling nodes pass on unseen, and for another model's latent."""
    check_latent(guider.inner_model, latent)
    if not math.isfinite(cfg := getattr(guider, "cfg", 1.0)):
        raise ValueError(f"cfg is {cfg}; expected a number, 1 for TwinFlow models")
    check_numbers("the noise", noise, "connect RandomNoise")
    check_numbers("the mask of the latent", mask, "draw the mask again")
    for name, conds in getattr(guider, "conds", {}).items():
        for cond in conds or ():
            inputs = {key: value for key, value in cond.items() if key in CHECKED}
            check_numbers(f"the {name} prompt", inputs, "encode it again, or choose another prompts file")


def with_target(model_options: dict, time: TimeConditioning, r: Tensor) -> dict:
    """The model's options with the target time of this step; the originals stay as they are."""
    transformer_options = {**model_options.get("transformer_options", {}), KEY: time.with_target(r)}
    return {**model_options, "transformer_options": transformer_options}
