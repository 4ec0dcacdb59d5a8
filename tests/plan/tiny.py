"""A tiny model of every class that is trained, as a Size."""

from dataclasses import replace

from trainer.plan.sizes import SIZES

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
    "sana": dict(
        num_layers=3, num_attention_heads=2, attention_head_dim=32, num_cross_attention_heads=2, cross_attention_head_dim=32,
        cross_attention_dim=64, caption_channels=48, sample_size=4,
    ),
}  # fmt: skip
TINY = {name: replace(SIZES[name], config=config, tokens=20) for name, config in CONFIGS.items()}
PIXELS = 128
