"""A tiny model of every class that is trained, as a backbone; and settings from what differs."""

import copy
from dataclasses import replace

from trainer.backbones import backbone
from trainer.config.flat import from_flat
from trainer.config.settings import Settings

CONFIGS = {
    "qwen-image": dict(
        num_layers=3, num_attention_heads=2, attention_head_dim=32, joint_attention_dim=64, axes_dims_rope=(8, 12, 12)
    ),
    "z-image": dict(
        dim=64, n_layers=3, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=48, axes_dims=[8, 12, 12],
        axes_lens=[256, 64, 64],
    ),
    "sd3.5": dict(
        num_layers=3, num_attention_heads=2, attention_head_dim=32, joint_attention_dim=48, caption_projection_dim=64,
        pooled_projection_dim=40, pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm", sample_size=8,
    ),
    "flux2-klein": dict(
        num_layers=2, num_single_layers=2, num_attention_heads=2, attention_head_dim=32, joint_attention_dim=48,
        axes_dims_rope=(8, 8, 8, 8), guidance_embeds=False,
    ),
    "krea2": dict(
        num_layers=3, num_attention_heads=2, num_key_value_heads=1, attention_head_dim=32, intermediate_size=128,
        text_hidden_dim=32, text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=128,
        num_text_layers=4, axes_dims_rope=(8, 12, 12),
    ),
    "qwen-image-2.1": dict(
        num_layers=3, num_attention_heads=2, attention_head_dim=32, context_in_dim=48, axes_dims_rope=(8, 12, 12)
    ),
    "sana": dict(
        num_layers=3, num_attention_heads=2, attention_head_dim=32, num_cross_attention_heads=2, cross_attention_head_dim=32,
        cross_attention_dim=64, caption_channels=48, sample_size=4,
    ),
}  # fmt: skip
PIXELS = 128


def tiny(name: str):
    small = copy.copy(backbone(name))
    small.size = replace(small.size, config=CONFIGS[name], tokens=20)
    return small


TINY = {name: tiny(name) for name in CONFIGS}


def settings(**changes) -> Settings:
    """Of a LoRA of rank 8 on attention, at PIXELS; averages: how many EMAs."""
    decays = [dict(ema=0.0), dict(ema=0.99), dict(ema=0.99, weights_ema=0.99)][changes.pop("averages", 1)]
    guide = dict(guide="base") if changes.pop("frozen_copy", False) else {}
    return from_flat(dict(model="qwen-image", rank=8, resolution=PIXELS) | decays | guide | changes)
