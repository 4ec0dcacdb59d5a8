"""How a sampler passes the times t and r of a step to a model.

They travel as one frozen value in `transformer_options`, so clones never share it and nothing on a live model changes.
The rule is the model's time conditioning:

    two    a second time embedder (t, r): see nodes/backbones
    fold   one time embedder, asked at t - r / 2
    off    one time embedder, asked at t; the target time r is not used

The twin branch asks for the field of the model's own samples, (-t, -t), whatever the target time.
"""

from dataclasses import dataclass, replace
from functools import partial

import comfy.model_base
import comfy.patcher_extension
import torch
from torch import Tensor

from ..twinflow.path import widest
from ..twinflow.presets import Sampling
from ..twinflow.time_embedding import fold
from .saved import remembered
from .setups import check_stock_sampler
from .supported import backbone_of

KEY = "twinflow"


@dataclass(frozen=True, eq=False)
class TimeConditioning:
    """rule, branch: see above.  target: r, shape (B,) or (1,); None when the sampler gives none.

    recommended: the sampling settings that the file's own metadata names, best first.
    unfolded: the LoRA, where a loader that cannot fold applied one that was trained with the rule fold.
    """

    rule: str = "two"
    branch: str = "real"
    target: Tensor | None = None
    recommended: tuple[Sampling, ...] = ()
    unfolded: str = ""

    def with_target(self, target: Tensor) -> "TimeConditioning":
        return replace(self, target=target)

    def pair(self, timesteps: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """(t, r), each (B,), for a model with two time embedders, from the timesteps = scale * t that ComfyUI gives it.

        Without a target it is the velocity at t.
        """
        t = timesteps
        r = t if self.target is None else tiled(self.target * scale, t)  # scaled alike, so that r = t stays equal
        if scale != 1:
            t, r = widest(t) / scale, widest(r) / scale
        return (-t, -t) if self.branch == "twin" else (t, r)

    def single(self, t: Tensor) -> Tensor:
        """The one time for a model with one time embedder.  Without a target it is t, as after the stock LoRA loader."""
        if self.branch == "twin":
            return fold(-t, -t) if self.rule == "fold" else -t
        if self.rule == "off" or self.target is None:
            return t
        return fold(t, tiled(self.target, t))


def tiled(target: Tensor, t: Tensor) -> Tensor:
    """The targets for every row of t: ComfyUI stacks prompt and negative prompt, each with the whole batch."""
    return target.reshape(-1).to(t).repeat(t.shape[0] // target.numel())


def for_two_embedders(transformer_options: dict) -> TimeConditioning | None:
    """The step's time conditioning, if it is for a model with two time embedders and differs from the time t alone."""
    time = transformer_options.get(KEY)
    if time is None or time.rule != "two" or (time.target is None and time.branch == "real"):
        return None
    return time


def has_second_embedder(model: comfy.model_base.BaseModel) -> bool:
    return getattr(model.diffusion_model, "has_second_embedder", False)


def time_conditioning_of(model: comfy.model_base.BaseModel, model_options: dict) -> TimeConditioning:
    """What a node attached to the model's options, else what the model's own layers allow."""
    time = model_options.get("transformer_options", {}).get(KEY)
    if time is not None:
        return time
    known, two = remembered(model), has_second_embedder(model)
    unfolded = "the model's file" if known and known.time == "fold" and not two else ""
    return TimeConditioning("two" if two else "off", recommended=known.sampler if known else (), unfolded=unfolded)


def attach(patcher, time: TimeConditioning):
    """A clone of the patcher with this time conditioning."""
    patcher = patcher.clone()
    options = patcher.model_options["transformer_options"] = dict(patcher.model_options.get("transformer_options", {}))
    options[KEY] = time
    kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
    patcher.remove_wrappers_with_key(kind, KEY)
    if time.rule != "two" and (time.rule == "fold" or time.branch == "twin" or time.unfolded):
        backbone = backbone_of(patcher.model)
        patcher.add_wrapper_with_key(kind, KEY, partial(with_single_time, backbone and backbone.native_time.view))
    return patcher


def with_single_time(view, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """Ask the model at the folded time in place of t, and read its velocity at t.

    view: the backbone's own count of time, of t, where it has one; ComfyUI then gives its class 1 - sigma.
    Works one level above the diffusion model, where the time is still the sigma: SD3 has no wrapper further in.
    """
    assert transformer_options is not None  # the wrapper was found in them
    time = transformer_options[KEY]
    check_stock_sampler(executor.class_obj, time, transformer_options)
    if time.rule == "off" and time.branch == "real":
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
    single = time.single(t)
    if view is not None:  # differs from 1 - sigma for a negative time only
        single = 1 - view(widest(single)).float()
    data = executor(x, single, c_concat, c_crossattn, control, transformer_options, **kwargs)
    stretch = torch.where(single == 0, 1.0, t / single)
    return x + (data - x) * stretch.reshape(-1, *[1] * (x.ndim - 1))
