"""The published models by name: the settings of their transformers, and what is around them.  Numbers only, no weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from .. import TrainerError
from ..backbones import Backbone


@dataclass(frozen=True, eq=False)  # hashed as the object it is
class Size:
    """module: of trainer.backbones.  config: of the diffusers class, where it differs from the class's own defaults.

    channels: of the latents.  tokens: of a long prompt.  text: GiB of the text
    encoders in bf16.
    """

    module: str
    config: Mapping[str, Any]
    channels: int
    text: float
    tokens: int = 256
    references: int = 0  # pictures beside the one that is made

    @property
    def backbone(self) -> Backbone:
        return import_module(f"..backbones.{self.module}", __package__).BACKBONE

    @property
    def factor(self) -> int:
        """How many pixels one latent is wide."""
        return self.backbone.factor

    def transformer(self) -> nn.Module:
        """On the device and in the dtype that are the default here: "meta" costs nothing."""
        return getattr(diffusers, self.backbone.transformer_class)(**self.config)

    def inputs(self, model: nn.Module, pixels: int, dtype: torch.dtype) -> dict:
        """Arguments of the transformer's forward for one square picture."""
        side, config = pixels // self.factor, model.config
        x = torch.zeros(1, self.channels, side, side, dtype=dtype)
        return _INPUTS[self.module](config, x, torch.zeros(1), lambda n: torch.zeros(1, self.tokens, n, dtype=dtype), self)


def _qwen(config, x, t, text, size) -> dict:
    side = x.shape[-1] // config.patch_size
    pictures = 1 + size.references
    return dict(
        hidden_states=x.new_zeros(1, pictures * side**2, config.in_channels),
        timestep=t,
        encoder_hidden_states=text(config.joint_attention_dim),
        encoder_hidden_states_mask=None,
        img_shapes=[[(1, side, side)] * pictures],
    )


def _z_image(config, x, t, text, size) -> dict:
    return dict(x=list(x.unsqueeze(2)), t=t, cap_feats=list(text(config.cap_feat_dim)))


def _sd3(config, x: Tensor, t, text, size) -> dict:
    pooled = x.new_zeros(1, config.pooled_projection_dim)
    return dict(hidden_states=x, timestep=t, encoder_hidden_states=text(config.joint_attention_dim), pooled_projections=pooled)


def _sana(config, x, t, text, size) -> dict:
    return dict(hidden_states=x, timestep=t, encoder_hidden_states=text(config.caption_channels))


_INPUTS = {"qwen_image": _qwen, "z_image": _z_image, "sd3": _sd3, "sana": _sana, "openuni": _sana}


_QWEN = Size("qwen_image", dict(), channels=16, text=15.4)
_Z_IMAGE = Size("z_image", dict(), channels=16, text=7.5)
SIZES: dict[str, Size] = {
    "qwen-image": _QWEN,
    "qwen-image-edit": replace(_QWEN, references=1),
    "z-image": _Z_IMAGE,
    "z-image-turbo": _Z_IMAGE,
    "sd3.5": Size(
        "sd3",
        dict(
            num_layers=24,
            num_attention_heads=24,
            caption_projection_dim=1536,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        ),
        channels=16,
        text=10.4,
        tokens=333,
    ),
    "sd3.5-large": Size(
        "sd3",
        dict(
            num_layers=38,
            num_attention_heads=38,
            caption_projection_dim=2432,
            pos_embed_max_size=192,
            qk_norm="rms_norm",
        ),
        channels=16,
        text=10.4,
        tokens=333,
    ),
    "sana-0.6b": Size(
        "sana",
        dict(
            num_attention_heads=36,
            num_layers=28,
            num_cross_attention_heads=16,
            cross_attention_head_dim=72,
            cross_attention_dim=1152,
        ),
        channels=32,
        text=4.9,
    ),
    "sana": Size("sana", dict(), channels=32, text=4.9),
    "openuni": Size("openuni", dict(), channels=32, text=3.7),  # the language model, and the connector in fp32
}


def size(name: str) -> Size:
    """The size of this name.  Raises TrainerError."""
    if name not in SIZES:
        raise TrainerError(f"model is {name!r}; expected one whose size is known: {', '.join(SIZES)}")
    return SIZES[name]
