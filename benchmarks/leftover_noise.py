"""How much noise a distilled emoji model leaves in its jumps: on areas that are white, and by the sharpness of samples.

    python benchmarks/leftover_noise.py [FILE ...]      (files of trainer.full or trainer.lora; without: the shipped model)

The error of the velocity on white areas of real pictures is split in a part that follows the noise of x_t (its slope) and a
rest, for the base at r = t and the model at r = t, t / 2 and 0.  Sharpness is relative to the base's 32 steps.
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from trainer.backbones import backbone  # noqa: E402
from trainer.backbones.emoji import Emoji  # noqa: E402
from trainer.data.emoji import NumberedEmoji, split  # noqa: E402
from trainer.runs.emoji import MULTI, EmojiRun, Latents, WordTable, sayable_part  # noqa: E402
from trainer.runs.emoji_judge import sharpness  # noqa: E402
from trainer.weights.inference import load_trained  # noqa: E402
from trainer.weights.trainee import Plain  # noqa: E402
from twinflow.backbones.emoji import FOLD, SHIPPED  # noqa: E402
from twinflow.words import load_words  # noqa: E402

TIMES = 0.1, 0.3, 0.5, 0.7, 0.9
ROWS = 64


def pixels(latents):
    return F.pixel_shuffle(latents, FOLD)


def main() -> None:
    own = backbone("emoji")
    assert isinstance(own, Emoji)
    run, words, base = EmojiRun(own), load_words(SHIPPED / "words.safetensors"), Plain(own, own.load())
    rows = NumberedEmoji(sayable_part(split()[0], words), words, varied=False)
    x, cond, _ = Latents(rows, WordTable(words.vectors)).batch_at(3, ROWS, 0)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    white = F.avg_pool2d((pixels(x).amin(1, keepdim=True) > 0.97).float(), 3, 1, 1) > 0.999
    white = white.expand(-1, 3, -1, -1)
    start, shown = run.drawn(words, torch.device("cpu"))
    sharp = lambda network, s: sharpness(torch.cat(run.grid(network, start, shown, s)))
    wanted = sharp(base, MULTI)
    for file in sys.argv[1:] or [SHIPPED / "distilled.safetensors"]:
        model = load_trained(own, own.load(), file)
        print(f"{file}\n| t | base, r = t | r = t | r = t / 2 | r = 0 |\n|---|---|---|---|---|")
        for t in TIMES:
            parts = []
            for network, r in ((base, t), (model, t), (model, t / 2), (model, 0.0)):
                with torch.no_grad():
                    v = network((1 - t) * x + t * noise, torch.full((ROWS,), t), torch.full((ROWS,), r), cond)
                error, known = pixels(v - (noise - x))[white], pixels(noise)[white]
                slope = (error * known).mean() / known.square().mean()
                parts.append(f"{slope:+.3f}, {(error - slope * known).std():.3f}")
            print(f"| {t} | {' | '.join(parts)} |")
        few = [s for s in own.sampling if s.steps <= 4]
        print(", ".join(f"sharpness at {s.steps}: {sharp(model, s) / wanted:.2f}" for s in few))


if __name__ == "__main__":
    main()
