"""Tiny real transformers of diffusers, three blocks deep, and a batch for each."""

import diffusers
import torch

from trainer.backbones import qwen_image, sd3
from trainer.config.resolving import resolve

LAYERS = 3
QWEN = dict(
    patch_size=2, in_channels=16, out_channels=4, num_layers=LAYERS, attention_head_dim=32, num_attention_heads=2,
    joint_attention_dim=64, axes_dims_rope=(8, 12, 12),
)  # fmt: skip
SD3 = dict(
    sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=LAYERS, attention_head_dim=32, num_attention_heads=2,
    joint_attention_dim=64, caption_projection_dim=64, pooled_projection_dim=32, pos_embed_max_size=8, qk_norm="rms_norm",
)  # fmt: skip
BACKBONES = {"qwen-image": (qwen_image.BACKBONES["qwen-image"], QWEN), "sd3.5": (sd3.BACKBONES["sd3.5"], SD3)}


def plain(name: str):
    """The backbone and its plain transformer; no weight is zero."""
    backbone, config = BACKBONES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(diffusers, backbone.transformer_class)(**config)
        for p in model.parameters():
            p.data.add_(torch.randn_like(p) * 0.02)
    return backbone, model.eval()


def batch(name: str, rows: int, seed: int = 0):
    """x, cond and uncond."""
    g = torch.Generator().manual_seed(seed)

    def cond():
        embeds = torch.randn(rows, 4, 64, generator=g)
        if name == "sd3.5":
            return embeds, torch.randn(rows, 32, generator=g)
        return embeds, torch.ones(rows, 4, dtype=torch.bool)

    return torch.randn(rows, 4, 8, 8, generator=g), cond(), cond()


def config(mode: str = "lora", **settings):
    """Settings of digits, which need no files, and these."""
    return resolve(mode, {"rank": 4, "targets": "attention"} | settings if mode == "lora" else settings)
