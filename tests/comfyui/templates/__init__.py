"""The shared workflows as graphs: `make_workflows.py` hands them to the frontend, which writes example_workflows/*.json."""

from . import emoji, own, published

TEMPLATES = [
    make()
    for make in (
        emoji.emoji_in_one_step,
        emoji.the_twin,
        published.qwen_image,
        published.z_image,
        published.core_samplers,
        published.image_to_image,
        published.inpainting,
        published.compare_steps,
        own.qwen_image_lora,
        own.qwen_image_edit,
        own.flux2_klein,
        own.krea2,
        own.qwen_image_21,
        own.sd35_lora,
        own.digits,
    )
]
