"""Qwen-Image-Edit Plus, 2509 and 2511: Qwen-Image with reference images; 2511 conditions their patches on time 0, in rows
behind those of the samples."""

from dataclasses import replace

from . import qwen_image

BACKBONE = replace(
    qwen_image.BACKBONE,
    name="qwen-image-edit",
    title="Qwen-Image-Edit",
    models={"qwen-image-edit": "Qwen/Qwen-Image-Edit-2511", "qwen-image-edit-2509": "Qwen/Qwen-Image-Edit-2509"},
    aliases={"qwen-image-edit-2511": "qwen-image-edit"},
    variant=True,
    pipelines=r"QwenImageEdit\w*Pipeline",
)
