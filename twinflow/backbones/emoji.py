"""Emoji of 32 x 32 pixels, with a small Qwen-Image whose base comes with the project.

A latent is a square of 2 x 2 pixels, so its 12 channels are their colours, and a patch is one of 4 x 4 pixels.
"""

from dataclasses import replace
from pathlib import Path

from . import qwen_image

BACKBONE = replace(qwen_image.BACKBONE, name="emoji", title="Emoji", models={"emoji": ""}, variant=True, pipelines="")
FOLD = (
    2  # pixels that one latent is wide: latents are pixel_unshuffle by it of pixels in [-1, 1], pixel_shuffle is the way back
)
SHIPPED = Path(__file__).parents[1] / "models" / "emoji"  # base.safetensors and its words.safetensors (see twinflow.words)
