"""Qwen-Image and its variants in ComfyUI."""

import comfy.ldm.qwen_image.model
import comfy.model_base
import comfy.supported_models

from ...twinflow.backbones.qwen_image import BACKBONE
from . import Model, TwoTimes

PUBLISHED = dict(head=128, heads=24, text=3584, channels=16)


class QwenImage(TwoTimes, comfy.ldm.qwen_image.model.QwenImageTransformer2DModel):
    backbone = BACKBONE


def settings(widths: dict, shapes) -> dict:
    if all(widths[name] == width for name, width in PUBLISHED.items()):
        return {}
    return dict(
        attention_head_dim=widths["head"],
        num_attention_heads=widths["heads"],
        joint_attention_dim=widths["text"],
        out_channels=widths["channels"],
        axes_dims_rope=widths["axes"],
    )


MODEL = Model(comfy.supported_models.QwenImage, comfy.model_base.QwenImage, QwenImage, settings)
