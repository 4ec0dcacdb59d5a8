"""A small Qwen-Image for emoji of 32 x 32 pixels.  Its base comes with the project; trainer.base is how it was trained.

Squares of 2 x 2 pixels stand for latents; every word of a prompt is a learnt token.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from twinflow.backbones import emoji as known
from twinflow.presets import Sampling

from .sizes import Size
from .small_qwen_image import SmallQwenImage

ARCHITECTURE: dict[str, Any] = dict(
    patch_size=2,
    in_channels=48,
    out_channels=12,
    num_layers=6,
    attention_head_dim=32,
    num_attention_heads=4,
    joint_attention_dim=128,
    axes_dims_rope=(8, 12, 12),
)


def to_latents(pixels: Tensor) -> Tensor:
    """(B, 12, 16, 16) of pixels (B, 3, 32, 32) in [-1, 1]."""
    return F.pixel_unshuffle(pixels, known.FOLD)


def to_images(latents: Tensor) -> Tensor:
    """Images (B, 3, 32, 32) in [0, 1]."""
    return (F.pixel_shuffle(latents.float(), known.FOLD) / 2 + 0.5).clamp(0, 1)


class Emoji(SmallQwenImage):
    core = known.BACKBONE
    pixels, factor = 32, known.FOLD
    chunk = 250
    license = "CC-BY-4.0: trained on the graphics of Twemoji, copyright Twitter, Inc and other contributors"
    shipped = known.SHIPPED / "base.safetensors"
    distilled = known.SHIPPED / "distilled.safetensors"
    unread: tuple[str, ...] = (
        "data", "prompts", "sample_most", "validation",
        "base_steps", "base_batch", "base_lr", "base_optimizer", "base_matrix_lr", "base_ema",
    )  # fmt: skip
    sampling = (
        Sampling(1, "few", 0.0, end_gap=0.7),
        Sampling(2, "any", 0.0, end_gap=0.3),  # an error of the velocity counts by the length of the last jump
        Sampling(4, "any", 0.0, end_gap=0.2),
        Sampling(8, "any", 0.0, end_gap=0.1),
    )
    sizes = {"emoji": Size(ARCHITECTURE, channels=12, text=0.0, tokens=8)}

    def recipe(self, mode: str) -> dict[str, Any]:
        """What docs/emoji.md found: the base's velocity as the target, the twin, and rows that jump to r = 0 from any t."""
        own = dict(
            base_steps=5000, base_batch=256, base_optimizer="muon", base_lr=4e-3, base_matrix_lr=1e-2, base_ema=0.999,
            sample_every=2000, dtype="fp32",
        )  # fmt: skip
        if mode == "base":
            return own | dict(save_dtype="bf16", save_every=1000, keep=1)
        return own | dict(
            threads=1, steps=2160, batch=16, time_shift=3.0, accumulation=1, warmup=20, betas=(0.9, 0.95), ema=0.99,
            weights_ema=0.995, sample_every=1000, checkpointing=False, order=2, dt=0.2, rectify=2.0, loss="l2",
            roles=dict(one_step=1, multi_step=0.5, any_step=1, few_step=1, fake=1),
            target="guide", guide="base", guidance=1.0,
            **(dict(rank=16, targets="all", lr=2e-3) if mode == "lora" else dict(lr=5e-4, embedder_lr=2e-3)),
        )  # fmt: skip


BACKBONES = {name: Emoji(name) for name in known.BACKBONE.models}
