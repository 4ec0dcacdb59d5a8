"""A tiny Qwen-Image for handwritten digits of 8 x 8 pixels, which its own run trains (trainer/runs/digits.py).

The three colour channels of an image stand for latents, so there is no VAE; the prompts are learnt tokens, so there is no text
encoder.  All else is Qwen-Image: class, key names, time conditioning.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from twinflow.backbones import digits as known
from twinflow.presets import Sampling
from twinflow.weights import load, read_header

from .. import TrainerError
from . import sources
from .qwen_image import QwenImage
from .sizes import Size

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


class Digits(QwenImage):
    core = known.BACKBONE
    pixels, factor = SIDE, 1
    chunk = 500
    text_parts = ()  # prompts are names of the run's own
    unread: tuple[str, ...] = ("data", "prompts", "validation", "validate_every")
    sampling = (
        Sampling(1, "few", 0.0, end_gap=0.7),
        Sampling(2, "any", 0.0, end_gap=0.7),
        Sampling(4, "any", 0.0, end_gap=0.7),
        Sampling(8, "any", 0.0, end_gap=0.6),
        Sampling(32, "any", 0.0, end_gap=0.5),
    )
    sizes = {"digits": Size(ARCHITECTURE, channels=3, text=0.0, tokens=TOKENS)}

    def recipe(self, mode: str) -> dict[str, Any]:
        """What docs/digits.md found: a base with a little guidance, its velocity as the target, and Muon."""
        own = (
            dict(steps=750, lr=8e-3, matrix_lr=2e-2, rank=8, targets="all", alpha=8.0)
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

    def fresh(self, generator: torch.Generator) -> nn.Module:
        """A new transformer.  Modulation and output start at zero (adaLN-Zero), as DiTs are trained from scratch."""
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            model: Any = diffusers.QwenImageTransformer2DModel(**ARCHITECTURE)  # imported only when it is used
        modulation = [layer for block in model.transformer_blocks for layer in (block.img_mod[1], block.txt_mod[1])]
        for layer in [*modulation, model.norm_out.linear, model.proj_out]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        return model

    def load(self, source: str | Path = "", *, dtype: torch.dtype | None = None) -> nn.Module:
        """The transformer from a base file; there is no published one.  Raises TrainerError."""
        if not source:
            raise TrainerError("digits has no published model; its run trains a base (--base FILE takes another)")
        model = self.fresh(torch.Generator().manual_seed(0))
        sources.check_fits(read_header(source).tensors, model, source)
        model.load_state_dict(load(source))
        return model.eval()

    def shape(self, model: nn.Module, size: tuple[int, int]) -> tuple[int, int, int]:
        return ARCHITECTURE["out_channels"], SIDE, SIDE


BACKBONES = {name: Digits(name) for name in known.BACKBONE.models}
