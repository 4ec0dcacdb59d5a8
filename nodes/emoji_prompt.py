"""TwinFlow Emoji Prompt: words as CONDITIONING, and an empty latent, for the emoji models that come with the pack."""

from functools import cache

import torch
from comfy_api.latest import io

from ..twinflow.backbones import emoji
from ..twinflow.words import Words, load_words
from .loading import one_line
from .node import Node
from .schedule import CATEGORY
from .search import found_by

PIXELS = 32  # the models' pictures are as wide and as high
CHANNELS = 3 * emoji.FOLD**2


@cache
def words() -> Words:
    with one_line():
        return load_words(emoji.SHIPPED / "words.safetensors")


class EmojiPrompt(Node):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TwinFlowEmojiPrompt",
            display_name="TwinFlow Emoji Prompt",
            category=CATEGORY,
            **found_by("emoji", "text encode", "empty latent", "example", "try", "demo"),
            description=(
                "Words for the emoji models that come with the pack, and an empty latent of their size. No text encoder needed."
            ),
            inputs=[
                io.String.Input(
                    "words",
                    default="dog face",
                    placeholder="dog face",
                    tooltip=(
                        "The name of an emoji, or its words in another combination: red heart, flag of Japan, pizza, rocket, "
                        "sunflower, woman firefighter medium skin tone. All known words are on the help page."
                    ),
                ),
                io.Int.Input("batch_size", default=1, min=1, max=256, tooltip="How many pictures are drawn at once."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(
                    display_name="negative", tooltip="No words at all, for guidance: the base likes a cfg of 1.5."
                ),
                io.Latent.Output(display_name="latent", tooltip="Empty, for pictures of 32 x 32 pixels."),
            ],
        )

    @classmethod
    def execute(cls, words, batch_size=1) -> io.NodeOutput:
        side = PIXELS // emoji.FOLD
        latent = {"samples": torch.zeros(batch_size, CHANNELS, side, side)}
        return io.NodeOutput(conditioning(words), conditioning(""), latent)


def conditioning(text: str) -> list:
    """Raises ValueError for words that are not known."""
    return [[words().encode(text).embeds[None], {}]]
