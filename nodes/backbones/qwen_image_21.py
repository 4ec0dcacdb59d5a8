"""Qwen-Image-2.1 in ComfyUI."""

import comfy.ldm.qwen_image21.model
import comfy.model_base
import comfy.supported_models

from ...twinflow.backbones.qwen_image_21 import BACKBONE
from . import Model, TwoTimes

HEAD = 128  # of published models: ComfyUI's detection does not read off the file how a head's width is shared among axes


class QwenImage21(TwoTimes, comfy.ldm.qwen_image21.model.QwenImage21Transformer2DModel):
    backbone = BACKBONE


def settings(widths: dict, shapes) -> dict:
    return {} if widths["head"] == HEAD else dict(axes_dims_rope=widths["axes"])


MODEL = Model(comfy.supported_models.QwenImage21, comfy.model_base.QwenImage21, QwenImage21, settings)
