"""FLUX.2 klein in ComfyUI: FLUX's network with one modulation for all blocks."""

import comfy.ldm.flux.model
import comfy.model_base
import comfy.supported_models

from ...twinflow.backbones.flux2_klein import BACKBONE
from . import Model, TwoTimes

PUBLISHED = dict(head=128, mlp=3.0, channels=128)  # what ComfyUI's detection does not read off the file


class Flux2Klein(TwoTimes, comfy.ldm.flux.model.Flux):
    backbone = BACKBONE

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.double_blocks[0].img_attn.norm.query_norm, "weight"):  # an older one calls it scale
            raise AttributeError("FLUX's norms have no weight")


def settings(widths: dict, shapes) -> dict:
    if all(widths[name] == width for name, width in PUBLISHED.items()):
        return {}
    return dict(
        axes_dim=list(widths["axes"]),
        num_heads=widths["heads"],
        mlp_ratio=widths["mlp"],
        in_channels=widths["channels"],
        out_channels=widths["channels"],
    )


MODEL = Model(comfy.supported_models.Flux2, comfy.model_base.Flux2, Flux2Klein, settings)
