"""How the times of a step (nodes/times.py) reach a model: in `transformer_options`, so clones never share them and nothing on
a live model changes.
"""

from functools import partial

import comfy.model_base
import comfy.patcher_extension
import torch

from ..twinflow.path import widest
from .saved import remembered
from .setups import check_stock_sampler
from .supported import backbone_of
from .times import KEY, TimeConditioning


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
