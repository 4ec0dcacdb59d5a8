"""ComfyUI's own diffusion models with a second time embedder, built from the operations that ComfyUI passes in.

So fp8, GGUF storage, LoRA and memory management reach the second embedder as they reach every other layer.  The pair
(t, r) travels through the unchanged forward in the place of t, stacked in the last dimension.
"""

import functools
import inspect

import comfy.ldm.lumina.model as lumina
import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
import comfy.ldm.qwen_image.model as qwen
import torch

from ..twinflow.path import widest
from ..twinflow.time_embedding import SECOND_EMBEDDERS, TwoTimeEmbedder, stack, to_signal
from .channel import heard


@functools.cache
def place_of_options(forward) -> int:
    """Position of transformer_options after (self, x, timesteps); it moved between ComfyUI versions."""
    return list(inspect.signature(forward).parameters).index("transformer_options") - 3


def options_of(forward, args, kwargs) -> dict:
    if "transformer_options" in kwargs:
        return kwargs["transformer_options"]
    place = place_of_options(forward)
    return args[place] if place < len(args) else {}


class QwenImage(qwen.QwenImageTransformer2DModel):
    hears_two_times = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        SECOND_EMBEDDERS["qwen-image"].install(self)

    def _forward(self, x, timesteps, *args, **kwargs):
        stock = qwen.QwenImageTransformer2DModel._forward
        if times := heard(options_of(stock, args, kwargs)):
            timesteps = stack(*times.pair(timesteps))
        return stock(self, x, timesteps, *args, **kwargs)


class SmallZImage(lumina.NextDiT):
    """Z-Image whose time embedder has other widths than those that NextDiT derives from its dim."""

    def __init__(self, *args, time_widths=None, dtype=None, device=None, operations=None, **kwargs):
        build = dict(dtype=dtype, device=device, operations=operations)
        super().__init__(*args, **kwargs, **build)
        if time_widths:
            hidden, out = time_widths
            self.t_embedder = lumina.TimestepEmbedder(hidden, output_size=out, **build)


class ZImage(SmallZImage):
    hears_two_times = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        SECOND_EMBEDDERS["z-image"].install(self)
        self.t_embedder.signed = False  # as the released weights are served; the Model Loader sets it for files of our trainer

    def _forward(self, x, timesteps, *args, **kwargs):
        stock = lumina.NextDiT._forward
        if times := heard(options_of(stock, args, kwargs)):  # the network hears 1 - this, in float64
            timesteps = 1 - to_signal(widest(stack(*times.pair(timesteps))))
        return stock(self, x, timesteps, *args, **kwargs)


class PooledEmbedder(TwoTimeEmbedder):
    """SD3.5's: the second embedder adds its own view of the pooled prompt, which travels behind (t, r)."""

    def __init__(self, base, target, pooled, scale):
        super().__init__(base, target, scale)
        self._pooled = (pooled,)

    def forward(self, times, dtype, **kwargs):
        base, target = self._held
        if times.ndim == 1:
            return base(times, dtype, **kwargs)
        t, r, pooled = times[:, 0], times[:, 1], times[:, 2:]
        there = target(r, dtype, **kwargs)
        if pooled.shape[1]:
            there = there + self._pooled[0](pooled.to(dtype))
        return base(t, dtype, **kwargs) + there * ((t - r) / self.scale)[:, None].to(there.dtype)


class SD3(mmdit.OpenAISignatureMMDITWrapper):
    hears_two_times = True

    def __init__(self, *args, dtype=None, device=None, operations=None, **kwargs):
        build = dict(dtype=dtype, device=device, operations=operations)
        super().__init__(*args, **kwargs, **build)
        pooled = kwargs["adm_in_channels"]
        self.t_embedder_2 = mmdit.TimestepEmbedder(self.hidden_size, **build)
        self.y_embedder_2 = mmdit.VectorEmbedder(pooled, self.hidden_size, **build)
        self.t_embedder = PooledEmbedder(self.t_embedder, self.t_embedder_2, self.y_embedder_2, scale=1000.0)

    def forward(self, x, timesteps, context=None, y=None, control=None, transformer_options=None, **kwargs):
        transformer_options = transformer_options or {}
        if times := heard(transformer_options):
            t, r = times.in_units(1000.0).pair(timesteps)
            timesteps = torch.cat([stack(t, r), y.to(t)] if y is not None else [stack(t, r)], dim=1)
        return super().forward(
            x, timesteps, context=context, y=y, control=control, transformer_options=transformer_options, **kwargs
        )
