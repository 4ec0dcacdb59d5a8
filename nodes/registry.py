"""Model classes that ComfyUI's own detection finds, so that its stock loaders keep the second time embedder.

`comfy.model_detection` takes the first class in `comfy.supported_models.models` that matches.  Ours stand in front and
match only files with a second time embedder, and small models whose widths the stock classes do not know.  A backbone that
ComfyUI has no class of, and so does not detect, is detected here.
"""

import logging
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.supported_models
import torch
from torch import Tensor

from ..twinflow.backbones import WEIGHT_BIAS, Backbone
from .backbones import Model
from .supported import supported


class WithNetwork(comfy.model_base.BaseModel):
    """Stands between a stock model and BaseModel, and hands the latter our network in place of the stock one."""

    network: type

    def __init__(self, model_config, model_type, device=None, unet_model=None):
        super().__init__(model_config, model_type, device=device, unet_model=self.network)


class Pixels(comfy.latent_formats.LatentFormat):
    """Three channels that are the pixels themselves, -1 to 1, with the time axis that Qwen-Image's latents have."""

    latent_channels = 3
    latent_dimensions = 3
    spacial_downscale_ratio = 1
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    def process_in(self, latent):
        return latent

    process_out = process_in


def shapes_of(record: Backbone, state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
    """Of the weights behind the prefix, by diffusers' names.  What quantisation adds to them is left out."""
    shells = {
        key[len(prefix) :]: torch.empty(tensor.shape, device="meta")
        for key, tensor in state_dict.items()
        if key.startswith(prefix) and tensor.ndim and ("." not in key[len(prefix) :] or key.endswith(WEIGHT_BIAS))
    }
    return {key: tuple(shell.shape) for key, shell in record.layout.to_diffusers(shells).items()}


def settings_of(record: Backbone, model: Model, state_dict: Mapping[str, Tensor], prefix: str) -> dict | None:
    """What to change in the detected configuration; None for the tensors of another model."""
    if prefix + record.layout.native not in state_dict:
        return None
    shapes = shapes_of(record, state_dict, prefix)
    try:
        return model.settings(record.widths(shapes), shapes)
    except (KeyError, ValueError, IndexError):  # a tensor is absent, or of another rank
        return None


def config_class(record: Backbone, model: Model) -> type:
    """The class to register for this backbone."""
    name = model.base.__name__
    second: Any = type("TwinFlow" + name, (model.base, WithNetwork), {"network": model.network})
    small: Any = model.small and type("Small" + name, (model.base, WithNetwork), {"network": model.small})
    image_model = model.config.unet_config.get("image_model")
    key, known = record.second[0], model.config in comfy.supported_models.models

    class Config(model.config):
        twinflow_backbone = record.name

        @classmethod
        def matches(cls, unet_config, state_dict=None, unet_key_prefix=""):
            if state_dict is None or (image_model and unet_config.get("image_model") != image_model):
                return False
            prefix = unet_key_prefix or prefix_before(record.layout.native, state_dict)
            settings = settings_of(record, model, state_dict, prefix)
            return settings is not None and (prefix + key in state_dict or bool(settings) or not known)

        def get_model(self, state_dict, prefix="", device=None):
            settings = settings_of(record, model, state_dict, prefix) or {}
            self.unet_config = {**self.unet_config, **settings}
            if settings.get("out_channels") == Pixels.latent_channels:
                self.latent_format = Pixels()
            if prefix + key in state_dict:
                return second(self, device=device)
            return small(self, device=device) if small else super().get_model(state_dict, prefix, device)

    Config.__name__ = Config.__qualname__ = "TwinFlow" + model.config.__name__
    return Config


def prefix_before(key: str, state_dict: Mapping[str, Tensor]) -> str:
    """What stands before this key in the file; ComfyUI 0.3.64 does not tell."""
    return next((name[: -len(key)] for name in state_dict if name.endswith(key)), "")


def register() -> list[type]:
    """Put our classes in front of the stock ones; a backbone for which ComfyUI has such a class already is left to it."""
    stock, added = comfy.supported_models.models, []
    for file, record in supported().items():
        model = import_module(f".backbones.{file}", __package__).MODEL
        if model is None or any(getattr(c, "twinflow_backbone", None) == record.name for c in stock):
            continue
        if any(key.endswith(record.second[0]) for c in stock if issubclass(c, model.config) for key in c.required_keys):
            logging.info("[TwinFlow] ComfyUI itself has %s with a second time embedder; its class is used", record.title)
            continue
        if model.config not in stock:
            detect_also(record, model)
        added.append(config_class(record, model))
        stock.insert(0, added[-1])
    return added


def detect_also(record: Backbone, model: Model) -> None:
    """Let ComfyUI's detection find a backbone by its tensors where it finds nothing itself."""
    stock = comfy.model_detection.detect_unet_config

    def detect_unet_config(state_dict, key_prefix, *args, **kwargs):
        found = stock(state_dict, key_prefix, *args, **kwargs)
        if found is None and settings_of(record, model, state_dict, key_prefix) is not None:
            return dict(model.config.unet_config)
        return found

    comfy.model_detection.detect_unet_config = detect_unet_config
