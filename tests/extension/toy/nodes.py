"""Toy in ComfyUI, which has no such model: its network, its base and its configuration."""

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.supported_models_base
import torch
from torch import nn

from ...twinflow.backbones.toy import BACKBONE
from ...twinflow.time_embedding import sinusoid
from . import Model, TwoTimes


class Clock(nn.Module):
    def __init__(self, width, operations, **build):
        super().__init__()
        self.mlp = nn.Sequential(operations.Linear(64, width, **build), nn.SiLU(), operations.Linear(width, width, **build))

    def forward(self, u):
        return self.mlp(sinusoid(u, 64))


class Layer(nn.Module):
    def __init__(self, width, operations, **build):
        super().__init__()
        self.qkv, self.out = operations.Linear(width, 3 * width, **build), operations.Linear(width, width, **build)

    def forward(self, h):
        return h + self.out(nn.functional.scaled_dot_product_attention(*self.qkv(h).chunk(3, -1)))


class Network(nn.Module):
    def __init__(self, width, channels, text, layers, image_model=None, dtype=None, device=None, operations=None, **_):
        super().__init__()
        build = dict(dtype=dtype, device=device, operations=operations)
        linear = lambda *sizes: operations.Linear(*sizes, dtype=dtype, device=device)
        self.dtype = dtype
        self.x_in, self.caption, self.x_out = linear(channels, width), linear(text, width), linear(width, channels)
        self.clock, self.layers = Clock(width, **build), nn.ModuleList(Layer(width, **build) for _ in range(layers))

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, **_):
        h = self.x_in(x.flatten(2).mT) + (self.caption(context).mean(1) + self.clock((1 - timesteps) * 100))[:, None]
        for layer in self.layers:
            h = layer(h)
        return self.x_out(h).mT.reshape(x.shape)


class Toy(TwoTimes, Network):
    backbone = BACKBONE


class Latents(comfy.latent_formats.LatentFormat):
    latent_channels = 4


class Base(comfy.model_base.BaseModel):
    def __init__(self, model_config, model_type=comfy.model_base.ModelType.FLOW, device=None, unet_model=Network):
        super().__init__(model_config, model_type, device=device, unet_model=unet_model)

    def extra_conds(self, **kwargs):
        return super().extra_conds(**kwargs) | {"c_crossattn": comfy.conds.CONDRegular(kwargs["cross_attn"])}


class Config(comfy.supported_models_base.BASE):
    unet_config = {"image_model": "toy"}
    unet_extra_config = {}
    sampling_settings = {"multiplier": 1.0, "shift": 1.0}
    latent_format = Latents
    memory_usage_factor = 1.0
    supported_inference_dtypes = [torch.float32]

    def get_model(self, state_dict, prefix="", device=None):
        return Base(self, device=device)

    def clip_target(self, state_dict=None):
        return None


MODEL = Model(Config, Base, Toy, lambda widths, shapes: dict(widths))
