"""Records what the trainer's transformer gives for the shipped base, for tests/comfyui/test_node_emoji.py.

python tests/emoji/velocity.py writes the numbers again, after the base was trained anew.
"""

from pathlib import Path

import torch

from trainer.backbones import backbone
from twinflow.backbones.emoji import SHIPPED
from twinflow.weights import save
from twinflow.words import load_words

FILE = Path(__file__).with_name("velocity.safetensors")
TEXT = "smiling face with heart-eyes"


@torch.no_grad()
def numbers() -> dict[str, torch.Tensor]:
    known = backbone("emoji")
    prompt = load_words(SHIPPED / "words.safetensors").encode(TEXT)
    x, t = torch.randn(2, 12, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.9, 0.3])
    embeds, mask = known.collate([prompt, prompt])
    return dict(x=x, t=t, embeds=embeds, velocity=known.velocity(known.load(), x, t, (embeds, mask)))


if __name__ == "__main__":
    save(numbers(), FILE, {"text": TEXT})
