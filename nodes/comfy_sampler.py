"""The unified sampler as ComfyUI calls samplers: fn(model, x, sigmas, extra_args, callback, disable, **options).

sigma is the time t; model(x, sigma) answers with the data, so v = (x - data) / t.
"""

import hashlib
import logging

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..twinflow import path
from ..twinflow.sampler import sample
from .supported import backbone_of, names
from .time_conditioning import KEY, TimeConditioning, time_conditioning_of

# An empty latent noised from here on is text to image: it starts from noise alone, as the released sampler does.
PURE_NOISE = 0.9


def unified_sampler(**options) -> comfy.samplers.KSAMPLER:
    """A SAMPLER; the options are those of twinflow.sampler.sample."""
    return comfy.samplers.KSAMPLER(sample_unified, extra_options=options)


@torch.no_grad()
def sample_unified(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
    extra_args = dict(extra_args or {})
    guider = model.inner_model
    base = guider.inner_model
    times = sigmas.cpu()  # the only wait for the device
    check_model(base, times)
    model_options = extra_args.pop("model_options", {})
    time = time_conditioning_of(base, model_options)
    warn_without_target(base, time, options["style"])
    if times[0] > PURE_NOISE and not torch.count_nonzero(model.latent_image):
        x = x / times[0].to(x)  # ComfyUI scaled the noise by the first time

    def velocity(x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        data = model(x_t, t, **extra_args, model_options=with_target(model_options, time, r))
        return (x_t - data) / path.like(t, x_t)

    with tqdm(total=len(times) - 1, disable=disable) as bar:

        def report(i, t, x_t, data):
            bar.update()
            if callback is not None:
                callback({"i": i, "x": x_t.to(x), "denoised": data.to(x), "sigma": t, "sigma_hat": t})

        noise = FreshNoise(extra_args.get("seed"))
        return sample(velocity, x, times, noise_like=noise, callback=report, **options)


def with_target(model_options: dict, time: TimeConditioning, r: Tensor) -> dict:
    """The model's options with the target time of this step; the originals stay as they are."""
    transformer_options = {**model_options.get("transformer_options", {}), KEY: time.with_target(r)}
    return {**model_options, "transformer_options": transformer_options}


class FreshNoise:
    """Noise that depends on the seed, the draw and the place in the batch only: not on the device, nor on the neighbours."""

    def __init__(self, seed: int | None):
        self.seed, self.draw = seed or 0, 0

    def __call__(self, x: Tensor) -> Tensor:
        rows = [torch.randn(x.shape[1:], generator=self.generator(row)) for row in range(len(x))]
        self.draw += 1
        return torch.stack(rows).to(x.device, non_blocking=True)

    def generator(self, row: int) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed} {self.draw} {row}".encode(), digest_size=8).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


def check_model(base, times: Tensor) -> None:
    """Raises ValueError for a model or sigmas that have no flow-matching times; warns about times that would be changed."""
    name = type(base).__name__
    if not isinstance(base.model_sampling, comfy.model_sampling.CONST):
        raise ValueError(
            f"the model {name} does not predict a flow-matching velocity; the TwinFlow sampler needs one that does "
            f"({names()}). Use another SAMPLER for this model"
        )
    if times.max() > 1:
        raise ValueError(
            f"sigmas start at {times.max():.4g}; flow-matching times lie between 1 and 0. "
            "Connect TwinFlow Schedule, or another scheduler made for this model"
        )
    backbone = backbone_of(base)
    scale = float(base.model_sampling.timestep(torch.tensor(0.5))) / 0.5
    if backbone is not None and abs(scale - backbone.native_scale) > 1e-3 * backbone.native_scale:
        logging.warning(
            "[TwinFlow] a node before the sampler (ModelSamplingSD3, ModelSamplingAuraFlow or the like) multiplies the time of "
            "%s by %g; it was trained with %g. The image will be wrong: remove or bypass that node",
            name,
            scale,
            backbone.native_scale,
        )


def warn_without_target(base, time: TimeConditioning, style: str) -> None:
    """A model that gets t only cannot tell a jump to r from the velocity at t."""
    if time.rule == "off" and style != "multi":
        advice = (
            "right for a TwinFlow LoRA without an embedder" if style == "few" else "a TwinFlow LoRA needs the folded time here"
        )
        logging.log(
            logging.INFO if style == "few" else logging.WARNING,
            "[TwinFlow] %s gets the time t only, not the target time of the step: %s (TwinFlow LoRA Loader or TwinFlow Model "
            "Patch)",
            type(base).__name__,
            advice,
        )
