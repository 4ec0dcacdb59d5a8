"""Model classes that ComfyUI's own detection finds, so that its stock loaders keep the second time embedder.

`comfy.model_detection` takes the first class in `comfy.supported_models.models` that matches.  Ours are asked before all
others, whether ComfyUI or another pack puts its own in front, and match only files with a second time embedder, and small
models whose widths the stock classes do not know.  A backbone that ComfyUI has no class of, and so does not detect, is
detected here; one whose classes ComfyUI has moved or changed is left out, and its files are refused with the reason.
"""

import functools
import logging
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import comfy.latent_formats
import comfy.model_detection
import comfy.supported_models
import comfy.supported_models_base
import torch
from torch import Tensor

from ..twinflow.backbones import WEIGHT_BIAS, Backbone, is_second_embedder
from .backbones import Model
from .saved import remembered
from .supported import supported
from .time_conditioning import has_second_embedder
from .watched import Watched


class WithNetwork(Watched):
    """Stands between a stock model and BaseModel, and hands the latter our network in place of the stock one."""

    network: type

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "unet_model": self.network})


class Pixels(comfy.latent_formats.LatentFormat):
    """Three channels that are the pixels themselves, -1 to 1, with the time axis that Qwen-Image's latents have."""

    latent_channels = 3
    latent_dimensions = 3
    spacial_downscale_ratio = 1
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    def process_in(self, latent):
        return latent

    process_out = process_in

    def pixels(self, latent: Tensor) -> Tensor:
        """(..., 3, H, W) in [0, 1] of latents (..., C, h, w), not clamped."""
        return latent.float() / 2 + 0.5


class Squares(Pixels):
    """Squares of 2 x 2 pixels: their red, then their green, then their blue (torch's pixel_unshuffle)."""

    latent_channels = 12
    spacial_downscale_ratio = 2
    latent_rgb_factors = [[0.25 * (channel // 4 == colour) for colour in range(3)] for channel in range(12)]

    def pixels(self, latent: Tensor) -> Tensor:
        return super().pixels(torch.nn.functional.pixel_shuffle(latent, self.spacial_downscale_ratio))


IN_PIXELS = {form.latent_channels: form for form in (Pixels, Squares)}


def shapes_of(record: Backbone, state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
    """Of the weights behind the prefix, by diffusers' names.  What quantisation adds to them is left out."""
    own = {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix) and tensor.ndim}
    shells = {
        key: torch.empty(tensor.shape, device="meta")
        for key, tensor in own.items()
        if "." not in key or key.endswith(WEIGHT_BIAS) or record.layout.is_parameter(key)
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


def without_second(found: dict, state_dict: Mapping[str, Tensor], prefix: str) -> dict:
    """The detected configuration as that of the plain model: what detection makes of a second time embedder is not ours."""
    plain = {key: tensor for key, tensor in state_dict.items() if not is_second_embedder(key)}
    whole, own = (comfy.model_detection.detect_unet_config(tensors, prefix) for tensors in (state_dict, plain))
    if whole is None or own is None:
        return found
    kept = {name: value for name, value in found.items() if name in own or name not in whole}
    return kept | {name: value for name, value in own.items() if name not in whole or whole[name] != value}


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
        def matches(cls, unet_config, state_dict=None, unet_key_prefix="", *_, **__):  # ComfyUI asks for every file it loads
            if state_dict is None:
                return False
            prefix = unet_key_prefix or prefix_before(record.layout.native, state_dict)
            settings = settings_of(record, model, state_dict, prefix)
            if settings is None:
                return False
            two = prefix + key in state_dict
            found = without_second(unet_config, state_dict, prefix) if two else unet_config
            names = (image_model, *model.taken_for) if two else (image_model,)
            return (image_model is None or found.get("image_model") in names) and (two or bool(settings) or not known)

        def get_model(self, state_dict, prefix="", device=None):
            settings, two = settings_of(record, model, state_dict, prefix) or {}, prefix + key in state_dict
            if two:
                self.unet_config = without_second(self.unet_config, state_dict, prefix)
            self.unet_config = {**self.unet_config, **settings}
            if settings.get("out_channels") in IN_PIXELS:
                self.latent_format = IN_PIXELS[settings["out_channels"]]()
            kind = second if two else small
            return built(record, kind, self, device) if kind else super().get_model(state_dict, prefix, device)

    Config.__name__ = Config.__qualname__ = "TwinFlow" + model.config.__name__
    return Config


def built(record: Backbone, kind: type, config, device):
    """The model, of this kind.  Raises ValueError where ComfyUI builds it in another way than we know."""
    try:
        model = kind(config, device=device)
    except (AttributeError, TypeError) as error:
        raise ValueError(why_left_out(record, error)) from error
    if not isinstance(model.diffusion_model, kind.network):
        raise ValueError(why_left_out(record, f"{kind.__name__} builds {type(model.diffusion_model).__name__}"))
    provenance = remembered(model)
    if provenance is not None and has_second_embedder(model):
        record.native_time.of(model.diffusion_model).signed = provenance.signed_time
    return model


def prefix_before(key: str, state_dict: Mapping[str, Tensor]) -> str:
    """What stands before this key in the file; ComfyUI 0.3.64 does not tell."""
    return next((name[: -len(key)] for name in state_dict if name.endswith(key)), "")


def register() -> list[type]:
    """Have detection ask our classes first; returns them.  A backbone whose classes cannot be made is left out."""
    added = []
    for file, record in supported().items():
        try:
            if any(getattr(c, "twinflow_backbone", None) == record.name for c in comfy.supported_models.models):
                continue  # the pack is installed twice
            model = import_module(f".backbones.{file}", __package__).MODEL
            config = config_class(record, model)
            if model.config not in comfy.supported_models.models:
                detect_also(record, model)
        except Exception as error:  # whatever an older or a newer ComfyUI lacks
            config = refusing_class(record, why_left_out(record, error))
            logging.warning("[TwinFlow] %s", why_left_out(record, error))
        added.append(config)
    comfy.supported_models.models[:0] = added
    stand_in_front(added)
    return added


def stand_in_front(configs: list[type]) -> None:
    """Let detection ask these first, whatever is put in front of the list before us or after us."""
    stock = getattr(comfy.model_detection, "model_config_from_unet_config", None)
    if stock is None:  # they stand in the list
        return

    @functools.wraps(stock)
    def model_config_from_unet_config(unet_config, *args, **kwargs):
        own = next((c for c in configs if c.matches(unet_config, *args, **kwargs)), None)
        return stock(unet_config, *args, **kwargs) if own is None else own(unet_config)

    comfy.model_detection.model_config_from_unet_config = model_config_from_unet_config


def why_left_out(record: Backbone, error: Exception | str) -> str:
    """In a sentence."""
    note = f" ({record.note})" if record.note else ""
    return (
        f"{record.title} is left out, because this ComfyUI lacks what the pack builds on ({error}). Update it{note}, or, "
        "where it is the newest, this pack"
    )


def refusing_class(record: Backbone, reason: str) -> type:
    """In place of a backbone that is left out: refuses its files, which would be loaded without their second time embedder."""

    class Config(comfy.supported_models_base.BASE):
        twinflow_backbone = record.name

        @classmethod
        def matches(cls, unet_config, state_dict=None, unet_key_prefix="", *_, **__):
            prefix = unet_key_prefix or prefix_before(record.layout.native, state_dict or {})
            return all(prefix + key in (state_dict or {}) for key in (record.layout.native, record.second[0]))

        def get_model(self, state_dict, prefix="", device=None):
            raise ValueError(reason)

    Config.__name__ = Config.__qualname__ = "No" + record.title.replace("-", "").replace(".", "")
    return Config


def detect_also(record: Backbone, model: Model) -> None:
    """Let ComfyUI's detection find a backbone by its tensors where it finds nothing itself."""
    stock = comfy.model_detection.detect_unet_config

    def detect_unet_config(state_dict, key_prefix, *args, **kwargs):
        found = stock(state_dict, key_prefix, *args, **kwargs)
        if found is None and settings_of(record, model, state_dict, key_prefix) is not None:
            return dict(model.config.unet_config)
        return found

    comfy.model_detection.detect_unet_config = detect_unet_config
