"""Setups that give a wrong image although everything runs: what to say of them, on the node that samples."""

import torch
from torch import Tensor

from .report import warn
from .supported import backbone_of
from .times import TimeConditioning

FEW = 6  # steps; with more of them, style few only throws away what the steps before found
MULTI = 15  # steps for the way from noise to the image; with fewer, plain flow matching blurs
GUIDANCE = 2.0  # cfg above which colours burn in a model that has guidance trained in
OURS = "use the TwinFlow Sampler, or the TwinFlow Unified Sampler as SAMPLER"


def is_plain(steps: int, span: float) -> bool:
    """Whether the steps are short enough for plain flow matching, over this much of the way from 1 to 0."""
    return steps >= MULTI * span


def check_style(style: str, stochasticity: float | str | None, times: Tensor) -> None:
    """Warns of a sampler's style that does not go with the schedule."""
    steps, span = len(times) - 1, float(times[0] - times[-1])
    if style == "few" and steps > FEW:
        warn(
            f"the schedule has {steps} steps, but style 'few' is for 1 to 4: choose style 'any' (8 steps) or 'multi' (30), or "
            "a shorter schedule"
        )
    if style == "multi" and not is_plain(steps, span):
        warn(
            f"the schedule has {counted(steps)}, too few for style 'multi', which is plain flow matching: choose style 'few' "
            "(1 to 4 steps) or 'any' (8), or the schedule of 30 steps"
        )
    if style != "few" and isinstance(stochasticity, (int, float)) and stochasticity > 0.5 and steps > 1:
        warn(f"stochasticity is {stochasticity:g}, but style {style!r} keeps its noise: set stochasticity to 0")


def check_conditioning(model, time: TimeConditioning, style: str, cfg: float) -> None:
    """Warns of a model that cannot tell a jump to r from the velocity at t, and of guidance on top of that trained in."""
    name = title(model)
    if time.rule != "off":
        if cfg > GUIDANCE:
            warn(f"cfg is {cfg:g}, but guidance is trained into TwinFlow models: set cfg to 1")
    elif time.unfolded:
        if style != "few":
            warn(unfolded(time))
    elif style != "multi":
        warn(
            f"this {name} is a plain model, or its time conditioning is off, and steps that jump give a wrong image: load a "
            "TwinFlow model or LoRA with its TwinFlow loader (or set TwinFlow Model Patch to folded, for a TwinFlow LoRA that "
            "names no times)"
        )


def check_stock_sampler(model, time: TimeConditioning | None, options: dict) -> None:
    """Warns at the first evaluation of a sampler that gives no target time, where its steps need one.

    options: the transformer_options of the evaluation.
    """
    if time is not None and time.target is not None:
        return
    sigmas, now = options.get("sample_sigmas"), options.get("sigmas")
    if sigmas is None or now is None or float(now[0]) != float(sigmas[0]):
        return
    steps, span, name = len(sigmas) - 1, float(sigmas[0] - sigmas[-1]), title(model)
    check_scale(model)
    if time is not None and time.unfolded and steps > 1:
        warn(unfolded(time))
    elif time is not None and time.rule == "fold" and steps > 1:
        warn(f"this sampler does not tell {name} where its steps end, so the folded times are wrong: {OURS}")
    elif not is_plain(steps, span):
        warn(
            f"this sampler does not tell {name} where its steps end, so {counted(steps)} give a wrong image: {OURS}, or take "
            "30 steps"
        )
    if 1 in options.get("cond_or_uncond", ()):
        warn("cfg is above 1, but guidance is trained into TwinFlow models: set cfg to 1")


def check_scale(model) -> None:
    """Raises ValueError where a node changed what the model's time is multiplied with: nothing but noise would come out."""
    backbone = backbone_of(model)
    scale = float(model.model_sampling.timestep(torch.tensor(0.5))) / 0.5
    if backbone is not None and abs(scale - backbone.native_scale) > 1e-3 * backbone.native_scale:
        raise ValueError(
            f"a node before the sampler (ModelSamplingSD3, ModelSamplingAuraFlow or the like) multiplies the time of "
            f"{backbone.title} by {scale:g}, but it was trained with {backbone.native_scale:g}. Remove or bypass that node"
        )


def title(model) -> str:
    backbone = backbone_of(model)
    return type(model).__name__ if backbone is None else backbone.title


def counted(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def unfolded(time: TimeConditioning) -> str:
    return (
        f"{time.unfolded} was trained with folded times (t - r/2), which its loader does not set: use a TwinFlow loader, or "
        "set TwinFlow Model Patch to folded"
    )
