"""Krea 2 in ComfyUI."""

import comfy.ldm.krea2.model
import comfy.model_base
import comfy.supported_models

from ...twinflow.backbones.krea2 import BACKBONE
from . import Model, TwoTimes

PUBLISHED = dict(head=128, text_heads=20, text_groups=20, features=256)  # what ComfyUI's detection does not read off the file


class Krea2(TwoTimes, comfy.ldm.krea2.model.SingleStreamDiT):
    backbone = BACKBONE


def settings(widths: dict, shapes) -> dict:
    if all(widths[name] == width for name, width in PUBLISHED.items()):
        return {}
    return dict(
        heads=widths["heads"],
        kvheads=widths["groups"],
        txtheads=widths["text_heads"],
        txtkvheads=widths["text_groups"],
        tdim=widths["features"],
    )


MODEL = Model(comfy.supported_models.Krea2, comfy.model_base.Krea2, Krea2, settings)
