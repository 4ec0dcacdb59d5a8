"""What a sampler tells a model about the times of a step, and how the model comes to hear it.

It travels as one frozen value in `transformer_options`, so clones never share it and nothing on a live model changes:

    two    the model has a second time embedder and hears (t, r)
    fold   one embedder: it hears t - r / 2
    off    it hears t alone

The twin branch asks for the field of the model's own samples, (-t, -t), whatever the sampler aims at.
"""

from dataclasses import dataclass, replace

import comfy.model_base
import comfy.patcher_extension
import torch
from torch import Tensor

from ..twinflow.path import widest
from ..twinflow.presets import Sampling
from ..twinflow.time_embedding import fold, to_signal

KEY = "twinflow"
RULES = ("two", "fold", "off")
BRANCHES = ("real", "twin")


@dataclass(frozen=True, eq=False)
class Times:
    """rule, branch: see above.  target: r, shape (B,) or (1,); None when the sampler names none.

    recommended: the sampling settings that the file's own metadata names, best first.
    """

    rule: str = "two"
    branch: str = "real"
    target: Tensor | None = None
    recommended: tuple[Sampling, ...] = ()

    def aimed(self, target: Tensor) -> "Times":
        return replace(self, target=target)

    def in_units(self, scale: float) -> "Times":
        """For a network that hears its time multiplied by scale."""
        return self if self.target is None else replace(self, target=self.target * scale)

    def pair(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(t, r) for a model with two embedders; a sampler that names no target asks for the velocity at t."""
        if self.branch == "twin":
            return -t, -t
        return t, t if self.target is None else tiled(self.target, t)

    def single(self, t: Tensor) -> Tensor:
        """The one time for a model with one embedder.  Without a target it is t, as after the stock LoRA loader."""
        sign = -1 if self.branch == "twin" else 1
        if self.rule == "off":
            return sign * t
        if self.branch == "twin":
            return fold(-t, -t)
        return t if self.target is None else fold(t, tiled(self.target, t))


def tiled(target: Tensor, t: Tensor) -> Tensor:
    """The targets for every row of t: ComfyUI stacks prompt and negative prompt, each with the whole batch."""
    return target.reshape(-1).to(t).repeat(t.shape[0] // target.numel())


def heard(transformer_options: dict) -> Times | None:
    """What the sampler said, if it concerns a model with two embedders."""
    times = transformer_options.get(KEY)
    return times if times is not None and times.rule == "two" and (times.target is not None or times.branch == "twin") else None


def has_second_embedder(model: comfy.model_base.BaseModel) -> bool:
    return getattr(model.diffusion_model, "hears_two_times", False)


def times_of(model: comfy.model_base.BaseModel, model_options: dict) -> Times:
    """The times of this model: what a node attached to its options, else what its own layers say."""
    times = model_options.get("transformer_options", {}).get(KEY)
    return times or Times("two" if has_second_embedder(model) else "off")


def attach(patcher, times: Times):
    """A clone of the patcher that hears the times so."""
    patcher = patcher.clone()
    options = patcher.model_options["transformer_options"] = dict(patcher.model_options.get("transformer_options", {}))
    options[KEY] = times
    kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
    patcher.remove_wrappers_with_key(kind, KEY)
    if times.rule != "two" and (times.rule == "fold" or times.branch == "twin"):
        patcher.add_wrapper_with_key(kind, KEY, hear_single_time)
    return patcher


def hear_single_time(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """Show the model the folded time in place of t, and read its velocity at t.

    Works one level above the diffusion model, where the time is still the sigma: SD3 has no wrapper further in.
    """
    model = executor.class_obj
    single = transformer_options[KEY].single(t)
    if counts_towards_data(model):  # it hears 1 - sigma; only a negative time differs from its signal
        single = 1 - to_signal(widest(single)).float()
    data = executor(x, single, c_concat, c_crossattn, control, transformer_options, **kwargs)
    stretch = torch.where(single == 0, 1.0, t / single)
    return x + (data - x) * stretch.reshape(-1, *[1] * (x.ndim - 1))


def counts_towards_data(model: comfy.model_base.BaseModel) -> bool:
    """Z-Image's network counts its time from noise to data."""
    return isinstance(model, comfy.model_base.Lumina2)
