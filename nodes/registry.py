"""Model classes that ComfyUI's own detection finds, so that its stock loaders keep the second time embedder.

`comfy.model_detection` takes the first class in `comfy.supported_models.models` that matches.  Ours stand in front and
match only files with a second embedder, and small models whose widths the stock classes do not know.
"""

import logging
from dataclasses import dataclass

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models as stock

from . import backbones, widths


@dataclass(frozen=True)
class Family:
    """One row per backbone.  second: a key that only files with a second embedder have.  small_net: for small plain files."""

    config: type
    base: type
    key: str
    net: type
    small_net: type | None
    widths: object
    signs: tuple[str, ...]


def families() -> list[Family]:
    rows = [
        Family(
            stock.QwenImage,
            comfy.model_base.QwenImage,
            "time_text_embed_2.timestep_embedder.linear_1.weight",
            backbones.QwenImage,
            None,
            widths.qwen_image,
            ("transformer_blocks.0.attn.norm_q.weight", "img_in.bias", "txt_norm.weight", "proj_out.bias"),
        ),
        Family(
            stock.SD3,
            comfy.model_base.SD3,
            "t_embedder_2.mlp.0.weight",
            backbones.SD3,
            None,
            widths.sd3,
            ("joint_blocks.0.x_block.attn.qkv.weight", "context_embedder.weight", "y_embedder.mlp.0.weight"),
        ),
    ]
    if hasattr(stock, "ZImage"):  # ComfyUI 0.3.74
        signs = (
            "layers.0.attention.q_norm.weight",
            "noise_refiner.0.adaLN_modulation.0.weight",
            "cap_embedder.1.bias",
            "final_layer.linear.bias",
        )
        rows.append(
            Family(
                stock.ZImage,
                comfy.model_base.Lumina2,
                "t_embedder_2.mlp.0.weight",
                backbones.ZImage,
                backbones.SmallZImage,
                widths.z_image,
                signs,
            )
        )
    return rows


class WithNet(comfy.model_base.BaseModel):
    """Stands between a stock model and BaseModel, and hands the latter our network in place of the stock one."""

    net: type

    def __init__(self, model_config, model_type, device=None, unet_model=None):
        super().__init__(model_config, model_type, device=device, unet_model=self.net)


class Pixels(comfy.latent_formats.LatentFormat):
    """Three channels that are the pixels themselves, -1 to 1, with the time axis that Qwen-Image's latents have."""

    latent_channels = 3
    latent_dimensions = 3
    spacial_downscale_ratio = 1
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    def process_in(self, latent):
        return latent

    process_out = process_in


def shapes_of(state_dict: dict, prefix: str):
    def shape(key: str):
        tensor = state_dict.get(prefix + key)
        return None if tensor is None else tuple(tensor.shape)

    return shape


def model_config(family: Family) -> type:
    """The class to register for this backbone."""
    second = type("TwinFlow" + family.base.__name__, (family.base, WithNet), {"net": family.net})
    small = family.small_net and type("Small" + family.base.__name__, (family.base, WithNet), {"net": family.small_net})

    class Config(family.config):
        twinflow_key = family.key

        @classmethod
        def matches(cls, unet_config, state_dict=None, unet_key_prefix=""):
            if state_dict is None:
                return False
            prefix = unet_key_prefix or prefix_before(family.signs[0], state_dict)
            if not all(prefix + key in state_dict for key in family.signs):
                return False
            if (
                "image_model" in family.config.unet_config
                and unet_config.get("image_model") != family.config.unet_config["image_model"]
            ):
                return False
            return prefix + family.key in state_dict or bool(family.widths(shapes_of(state_dict, prefix)))

        def get_model(self, state_dict, prefix="", device=None):
            small_widths = family.widths(shapes_of(state_dict, prefix))
            self.unet_config = {**self.unet_config, **small_widths}
            if small_widths.get("out_channels") == Pixels.latent_channels:
                self.latent_format = Pixels()
            if prefix + family.key in state_dict:
                return second(self, device=device)
            return small(self, device=device) if small else super().get_model(state_dict, prefix, device)

    Config.__name__ = Config.__qualname__ = "TwinFlow" + family.config.__name__
    return Config


def prefix_before(key: str, state_dict: dict) -> str:
    """What stands before this key in the file; ComfyUI 0.3.64 does not tell."""
    return next((name[: -len(key)] for name in state_dict if name.endswith(key)), "")


def register() -> list[type]:
    """Put our classes in front of the stock ones; a backbone for which ComfyUI has such a class already is left to it."""
    added = []
    for family in families():
        if any(getattr(c, "twinflow_key", None) == family.key and issubclass(c, family.config) for c in stock.models):
            continue
        if any(key.endswith(family.key) for c in stock.models if issubclass(c, family.config) for key in c.required_keys):
            logging.info(
                "[TwinFlow] ComfyUI itself knows %s with two time embedders; its class is used", family.config.__name__
            )
            continue
        added.append(model_config(family))
        stock.models.insert(0, added[-1])
    return added
