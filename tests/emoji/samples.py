"""What the trainer draws with the emoji weights that come with the project, for tests/comfyui/test_node_emoji.py.

    python tests/emoji/samples.py FILE      (in an interpreter with the trainer's requirements)

Writes the noise, and for every file and number of steps the samples of trainer.generate's own sampler.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from trainer.backbones import backbone
from trainer.weights.inference import generate, load_trained, noise
from trainer.weights.trainee import Plain
from twinflow.backbones.emoji import SHIPPED
from twinflow.presets import Sampling
from twinflow.weights import Provenance, read_header, save
from twinflow.words import load_words

TEXT = "smiling face with heart-eyes"


@torch.no_grad()
def samples() -> dict[str, torch.Tensor]:
    known = backbone("emoji")
    prompt = load_words(SHIPPED / "words.safetensors").encode(TEXT)
    start, cond = noise(2, (12, 16, 16), 0), known.collate([prompt, prompt])
    out = {"noise": start, "base/8 steps": generate(Plain(known, known.load()), start, cond, Sampling(8, "multi", end_gap=0.0))}
    for path in sorted(SHIPPED.glob("*.safetensors")):
        if Provenance.from_metadata(read_header(path).metadata) is None:  # the base, or its words
            continue
        network = load_trained(known, known.load(), path)
        for sampling in known.sampling:  # named as the presets of the nodes
            name = f"{sampling.steps} step{'s' * (sampling.steps > 1)}"
            out[f"{path.stem}/{name}"] = generate(network, start, cond, sampling)
    return out


if __name__ == "__main__":
    save(samples(), sys.argv[1])
