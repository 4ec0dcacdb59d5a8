"""Handwritten digits of 8 x 8 pixels, with a tiny Qwen-Image that the trainer trains itself."""

from dataclasses import replace

from . import qwen_image

BACKBONE = replace(qwen_image.BACKBONE, name="digits", title="Digits", models={"digits": ""}, variant=True, pipelines="")
