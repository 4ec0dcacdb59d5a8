"""A tiny Qwen-Image for handwritten digits of 8 x 8 pixels, which its own run trains (trainer/runs/digits.py).

The three colour channels of an image stand for latents.
"""

from typing import Any

from twinflow.backbones import digits as known
from twinflow.presets import Sampling

from .sizes import Size
from .small_qwen_image import SmallQwenImage

SIDE = 8
TOKENS = 4  # learnt tokens a prompt
ARCHITECTURE: dict[str, Any] = dict(
    patch_size=2,
    in_channels=12,
    out_channels=3,
    num_layers=3,
    attention_head_dim=32,
    num_attention_heads=2,
    joint_attention_dim=64,
    axes_dims_rope=(8, 12, 12),
)


class Digits(SmallQwenImage):
    core = known.BACKBONE
    pixels, factor = SIDE, 1
    chunk = 500
    unread: tuple[str, ...] = ("data", "prompts", "sample_most", "validation", "validate_every")
    sampling = (
        Sampling(1, "few", 0.0, end_gap=0.7),
        Sampling(2, "any", 0.0, end_gap=0.3),
        Sampling(4, "any", 0.0, end_gap=0.2),
        Sampling(8, "any", 0.0, end_gap=0.1),
        Sampling(32, "any", 0.0, end_gap=0.5),
    )
    sizes = {"digits": Size(ARCHITECTURE, channels=3, text=0.0, tokens=TOKENS)}

    def recipe(self, mode: str) -> dict[str, Any]:
        """What docs/digits.md found: a base with a little guidance, its velocity as the target, and Muon."""
        own = (
            dict(steps=750, time_shift=3.0, lr=8e-3, matrix_lr=2e-2, rank=8, targets="all", alpha=8.0)
            if mode == "lora"
            else dict(steps=950, lr=5e-3, matrix_lr=1e-2)
        )
        return own | dict(
            base_steps=1500, base_batch=64, base_optimizer="muon", base_lr=6e-3, base_matrix_lr=1e-2,
            batch=128, accumulation=1, warmup=30, betas=(0.9, 0.95), optimizer="muon", ema=0.0, weights_ema=0.99,
            order=1, dt=0.04, roles=dict(one_step=1, multi_step=0.5, any_step=1, few_step=1.5), rectify=0.0,
            target="guide", guide="base", guidance=1.0, guidance_range=(0.0, 1.01),
            stratified=True, dtype="fp32", checkpointing=False,
        )  # fmt: skip


BACKBONES = {name: Digits(name) for name in known.BACKBONE.models}
