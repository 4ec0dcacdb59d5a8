"""Z-Image in ComfyUI: Lumina 2's network (NextDiT) with other settings, which counts time as 1 - sigma."""

import comfy.ldm.lumina.model as lumina
import comfy.model_base
import comfy.supported_models

from ...twinflow.backbones.z_image import BACKBONE
from . import Model, TwoTimes

PUBLISHED = 3840  # width


class SmallZImage(lumina.NextDiT):
    """Z-Image whose time embedder has other widths than those that NextDiT derives from its dim.

    masked_pad_multiple: what ComfyUI sets for Ming-Image, which it takes a Z-Image without pad tokens for; not used.
    """

    def __init__(self, *args, time_widths=None, masked_pad_multiple=None, dtype=None, device=None, operations=None, **kwargs):
        build = dict(dtype=dtype, device=device, operations=operations)
        super().__init__(*args, **kwargs, **build)
        if time_widths:
            hidden, out = time_widths
            self.t_embedder = lumina.TimestepEmbedder(hidden, output_size=out, **build)


class ZImage(TwoTimes, SmallZImage):
    backbone = BACKBONE


def settings(widths: dict, shapes) -> dict:
    if "noise_refiner.0.adaLN_modulation.0.weight" not in shapes:
        raise KeyError("of Lumina 2, whose other names are Z-Image's")
    dim = widths["dim"]
    if dim == PUBLISHED:
        return {}
    hidden = shapes["layers.0.feed_forward.w1.weight"][0]
    return dict(
        dim=dim,
        cap_feat_dim=widths["text"],
        in_channels=widths["channels"],
        n_layers=widths["layers"],
        n_refiner_layers=widths["refiners"],
        n_heads=widths["heads"],
        n_kv_heads=widths["heads"],
        axes_dims=widths["axes"],
        axes_lens=(1536, 512, 512),
        rope_theta=256.0,
        multiple_of=1,
        ffn_dim_multiplier=(hidden + 0.5) / dim,  # int() of this times dim is hidden again
        z_image_modulation=True,
        time_scale=BACKBONE.native_time.scale,
        pad_tokens_multiple=32 if "cap_pad_token" in shapes else None,
        time_widths=(shapes["t_embedder.mlp.0.bias"][0], shapes["t_embedder.mlp.2.bias"][0]),
    )


MODEL = Model(comfy.supported_models.ZImage, comfy.model_base.Lumina2, ZImage, settings, SmallZImage, taken_for=("ming_image",))
