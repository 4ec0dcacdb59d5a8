"""TwinFlow Sampler: model, prompts and latent in, latent out, with the published settings by number of steps."""

import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io

from ..twinflow.presets import Sampling, near
from .comfy_sampler import unified_sampler
from .inputs import check_flow, check_latent, check_prompts
from .node import Node
from .schedule import CATEGORY, DEFAULT_PRESET, PRESETS, denoise_input, denoised
from .search import found_by
from .time_conditioning import time_conditioning_of

FROM_FILE = "recommended by the file"
BY_FILE = {f"{name}, by the file": name for name in list(PRESETS)[:4]}  # of few-step files


def recommended(model, preset: str = FROM_FILE) -> Sampling:
    """What the model's files name as their best settings, or for so many steps.  Raises ValueError where they name none."""
    settings = time_conditioning_of(model.model, model.model_options).recommended
    if not settings:
        raise ValueError(
            f"the preset is {preset!r}, but no file that this model was loaded from names sampling settings "
            f"(metadata twinflow.sampler). Choose one of {', '.join(PRESETS)}, or load the file with a TwinFlow loader"
        )
    return settings[0] if preset == FROM_FILE else near(PRESETS[BY_FILE[preset]].steps, settings)


class Sampler(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowSampleLatent",
            display_name="TwinFlow Sampler",
            category=CATEGORY,
            **found_by("few step", "one step", "turbo", "distill", "distilled", "fast sampler"),
            description="Samples a TwinFlow model in one node. Previews, masks, batches and ControlNet work as in KSampler.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "From the TwinFlow Model Loader, the TwinFlow LoRA Loader, or any loader of a model with a "
                        "TwinFlow LoRA."
                    ),
                ),
                io.Conditioning.Input("positive", tooltip="What the image shows."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="An empty latent for text to image; an encoded image for image to image or inpainting.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, FROM_FILE, *BY_FILE],
                    default=DEFAULT_PRESET,
                    tooltip=(
                        "The published settings for so many steps, or those that the model's file recommends: its best, or for "
                        "so many steps."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same image.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip=(
                        "Leave it at 1: guidance is trained in, and the negative prompt is not evaluated. Above 1 "
                        "each step costs twice."
                    ),
                ),
                denoise_input(),
                io.Conditioning.Input("negative", optional=True, tooltip="What to avoid; needed only when cfg is not 1."),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Times in place of the preset's, from TwinFlow Schedule. Denoise then comes from there, too.",
                ),
                io.Sampler.Input(
                    "sampler", optional=True, tooltip="A sampler in place of the preset's, from TwinFlow Unified Sampler."
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(
        cls, model, positive, latent_image, preset, seed, cfg, denoise, negative=None, sigmas=None, sampler=None
    ) -> io.NodeOutput:
        if negative is None:
            if cfg != 1:
                raise ValueError(f"cfg is {cfg}, which needs a negative prompt; connect one, or set cfg to 1")
            negative = positive
        check_flow(model.model, model.get_model_object("model_sampling"))
        check_prompts(model.model, "positive", positive)
        check_prompts(model.model, "negative", negative)
        if sigmas is None or sampler is None:
            sampling = PRESETS.get(preset) or recommended(model, preset)
            sigmas = denoised(sampling.times(), denoise) if sigmas is None else sigmas
            sampler = sampler or unified_sampler(**sampling.options())
        return io.NodeOutput(sample_latent(model, positive, negative, latent_image, sigmas, sampler, seed, cfg))


def fitted(model, latent: dict) -> tuple[dict, torch.Tensor]:
    """A copy of the latent, and its samples in the model's shape.  Raises ValueError for those of another model."""
    latent = dict(latent)
    scales = {name: latent.pop(name) for name in ("downscale_ratio_spacial", "downscale_ratio_temporal") if name in latent}
    check_latent(model.model, latent["samples"])
    return latent, comfy.sample.fix_empty_latent_channels(model, latent["samples"], **scales)


def sample_latent(model, positive, negative, latent, sigmas, sampler, seed, cfg) -> dict:
    """The latent with its samples replaced; masks, batch indices and previews as core's sampler nodes treat them."""
    latent, samples = fitted(model, latent)
    if len(sigmas) < 2:  # denoise 0
        return latent | {"samples": samples}
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    latent["samples"] = comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        sampler,
        sigmas,
        positive,
        negative,
        samples,
        noise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return latent
