"""TwinFlow Emoji Image: latents of the emoji models as pictures that are large enough to look at."""

from comfy_api.latest import io, ui
from torch import Tensor

from .emoji_prompt import CHANNELS
from .inputs import check_numbers, check_room
from .node import Node
from .registry import IN_PIXELS
from .schedule import CATEGORY
from .search import found_by

PIXEL_BYTES = 16  # of a number: the picture in float32, twice while it is made larger, and its PNG


class EmojiImage(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowEmojiImage",
            display_name="TwinFlow Emoji Image",
            category=CATEGORY,
            **found_by("emoji", "decode", "pixels", "preview"),
            description="Shows what an emoji model drew, with pixels large enough to look at. No VAE is needed.",
            inputs=[
                io.Latent.Input("latent", tooltip="From a sampler that ran one of the emoji models."),
                io.Int.Input("scale", default=8, min=1, max=64, tooltip="How large each of the 32 x 32 pixels becomes."),
            ],
            outputs=[io.Image.Output(display_name="image")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, scale=8) -> io.NodeOutput:
        image = image_of(latent["samples"], scale)
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


def image_of(samples: Tensor, scale: int) -> Tensor:
    """IMAGE (B, H, W, 3) of latents (B, 12, h, w), or with a time axis.  Raises ValueError for any others."""
    if getattr(samples, "is_nested", False) or samples.ndim not in (4, 5) or samples.shape[1] != CHANNELS:
        shape = "of several parts" if getattr(samples, "is_nested", False) else "x".join(map(str, samples.shape))
        raise ValueError(
            f"the latent is {shape}, those of emoji have {CHANNELS} channels: connect the sampler of a TwinFlow emoji model, "
            "and for any other model VAE Decode"
        )
    check_numbers("the latent", samples, "sample it again")
    check_room(f"{len(samples)} pictures at scale {scale}", PIXEL_BYTES * samples.numel() * scale**2)
    if samples.ndim == 5:
        samples = samples.movedim(2, 1).flatten(0, 1)
    pixels = IN_PIXELS[CHANNELS]().pixels(samples.cpu()).clamp(0, 1)
    return pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3).movedim(1, -1)
