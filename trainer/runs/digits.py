"""Handwritten digits (scikit-learn, 8 x 8, 1797 images): a run that trains its own base, distils it and is judged.

The three colour channels of an image stand for latents; the prompts "a handwritten 3" are learnt tokens.
"""

import hashlib
import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from twinflow.objective import Condition, Velocity
from twinflow.presets import OBJECTIVES, SAMPLING, Sampling
from twinflow.prompts import Prompt, load_prompts, save_prompts
from twinflow.weights import save

from .. import TrainerError
from ..backbones.digits import ARCHITECTURE, SIDE, TOKENS, Digits
from ..config.settings import Settings
from ..data.order import rows_at
from ..data.prompts import Prompt as Asked
from ..seeds import seed_of
from ..training import checkpoint
from ..training.log import Log
from ..weights import origin
from ..weights.inference import generate, load_trained, noise
from ..weights.trainee import Plain
from . import lock, quality
from .judge import CLASSES, split
from .pretraining import Base, Plan, pretrain
from .previews import Shown

NAMES = [*map(str, range(CLASSES)), ""]  # of the prompts, the empty one last
MULTI = replace(SAMPLING[30], steps=32)
DROP = 0.05  # share of rows of the base's training without a prompt


@cache
def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (N, 1, 8, 8) in [0, 1] and labels (N,): x_train, y_train, x_test, y_test."""
    digits = split()
    return digits.train, digits.train_labels, digits.test, digits.test_labels


def encode(grey: Tensor) -> Tensor:
    """Grey images (N, 1, 8, 8) in [0, 1] to latents (N, 3, 8, 8) in [-1, 1]."""
    return (grey * 2 - 1).expand(-1, 3, -1, -1)


def decode(latents: Tensor) -> Tensor:
    """The inverse of encode: the mean of the channels, clamped to [0, 1]."""
    return ((latents.float().mean(1, keepdim=True) + 1) / 2).clamp(0, 1)


class PromptTable(nn.Module):
    """The learnt tokens: one prompt a digit and, last, the empty prompt.  cond (labels (B,),) to (embeds, mask)."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        shape = CLASSES + 1, TOKENS, int(ARCHITECTURE["joint_attention_dim"])
        self.tokens = nn.Parameter(torch.randn(shape, generator=generator))

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        embeds = self.tokens[labels]
        return embeds, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)

    def prompts(self) -> dict[str, Prompt]:
        """By name: "0" to "9", and "" for the empty prompt."""
        return {
            name: Prompt(f"a handwritten {name}" if name else "", embeds.detach().clone())
            for name, embeds in zip(NAMES, self.tokens)
        }


@dataclass
class Labelled:
    """The training images under conditions made from their labels: class numbers, or (embeds, mask) looked up."""

    table: Condition | None = None

    def __len__(self) -> int:
        return len(images()[0])

    def batch_at(self, index: int, batch: int, seed: int):
        rows = torch.tensor([row for _, row in rows_at(index * batch, batch, len(self), seed)])
        x, y = images()[0][rows], images()[1][rows]
        empty = torch.full_like(y, CLASSES)
        if self.table is None:
            chance = torch.rand(len(y), generator=torch.Generator().manual_seed(seed_of(seed, "drop", index)))
            dropped = chance < DROP
            return encode(x), (torch.where(dropped, empty, y),), (empty,)
        return encode(x), tuple(c[y] for c in self.table), tuple(c[empty] for c in self.table)


@dataclass
class PreparedDigits:
    """model: the plain transformer.  data: what to train on."""

    model: nn.Module
    data: Labelled
    validation: None = None  # the test part is the judge's


class DigitsRun:
    """A Run (see the package) of the digits."""

    beside = "prompts.safetensors"
    base_sampling = (*(Sampling(n, "multi", 0.0, end_gap=0.0) for n in (1, 2, 4, 8)), MULTI)

    def __init__(self, backbone: Digits):
        self.backbone = backbone

    def prepare(self, settings: Settings, folder: Path, accelerator: Accelerator, log: Log) -> PreparedDigits:
        """Stage 1: the flow-matching base, trained once for all runs in the same folder with the same base settings."""
        known = self.backbone
        base = settings.base.path
        if base is None:
            cached = settings.run.out / "cache" / f"digits-{base_hash(settings)}"
            cached.mkdir(parents=True, exist_ok=True)
            base = cached / "base.safetensors"
            with lock.held(cached, wait=True) as lost:  # of another run, which trains the same base
                accelerator.wait_for_everyone()
                checkpoint.tidy(cached, main=accelerator.is_main_process)
                own_log = Log(cached / "metrics.csv", accelerator, settings.logging.log_every)
                if not base.exists():
                    pretrain(self.base_plan(settings), settings, cached, accelerator, own_log, lost)
                if accelerator.is_main_process:
                    shutil.rmtree(cached / "checkpoints", ignore_errors=True)
            log.rows = own_log.rows + [row for row in log.rows if row["stage"] != "base"]
        model, prompts = known.load(base), load_prompts(base.parent / "prompts.safetensors")
        if missing := [name for name in NAMES if name not in prompts]:
            raise TrainerError(f"{base.parent / 'prompts.safetensors'}: has no prompt {missing[0]!r}; expected {NAMES}")
        save(model.state_dict(), folder / "base.safetensors", {"modelspec.architecture": "digits"})
        save_prompts(folder / "prompts.safetensors", prompts)
        return PreparedDigits(origin.model(known, settings, lambda: model), Labelled(self.table(prompts)))

    def base_plan(self, settings: Settings) -> Plan:
        known = self.backbone

        def fresh() -> Base:
            generator = torch.Generator().manual_seed(settings.run.seed)
            return Base(known, PromptTable(generator), known.fresh(generator))

        def write(base: Base, folder: Path) -> None:
            save_prompts(folder / "prompts.safetensors", base.table.prompts())  # pyright: ignore[reportCallIssue]  it is a PromptTable
            tensors = {name: t.to(settings.base_dtype) for name, t in base.transformer.state_dict().items()}
            save(tensors, folder / "base.safetensors", {"modelspec.architecture": "digits"})

        return Plan(fresh, Labelled(), BASE_OBJECTIVE, write, preview=self.preview_base)

    def preview_base(self, network: Velocity, device: torch.device) -> dict[str, list[Tensor]]:
        """Rows by digit at 32 NFE."""
        labels = torch.arange(CLASSES).repeat_interleave(quality.ACROSS)
        made = decode(generate(network, self.start(len(labels), 0).to(device), (labels,), MULTI, chunk=self.backbone.chunk))
        return {"base, 32 NFE": list(made.unflatten(0, (CLASSES, -1)))}

    def judge_base(self, settings: Settings, folder: Path) -> dict[str, Any]:
        return quality.evaluate(self.from_base(settings, folder), self.labels(settings), folder)

    def labels(self, settings: Settings) -> Tensor:
        """The digits that are judged."""
        return torch.arange(settings.logging.evaluate) % CLASSES

    def from_base(self, settings: Settings, folder: Path) -> dict[tuple[str, int], Tensor]:
        """The base's samples of these digits, by stage and NFE."""
        labels, known = self.labels(settings), self.backbone
        cond = tuple(c[labels] for c in self.table(load_prompts(folder / "prompts.safetensors")))
        base, start = Plain(known, self.plain(settings, folder)), self.start(len(labels), settings.run.seed + 1)
        return {("base", s.steps): decode(generate(base, start, cond, s, chunk=known.chunk)) for s in self.base_sampling}

    def table(self, prompts: dict[str, Prompt]) -> Condition:
        """The conditions of all prompts, in the order of NAMES."""
        return self.backbone.collate([prompts[name] for name in NAMES])

    def start(self, rows: int, seed: int) -> Tensor:
        return noise(rows, (int(ARCHITECTURE["out_channels"]), SIDE, SIDE), seed)

    def shown(self, settings: Settings, prepared: PreparedDigits) -> list[Shown]:
        """Rows by digit."""
        table, side = prepared.data.table or (), self.backbone.pixels
        row = lambda k: tuple(c[k : k + 1] for c in table)
        shape = self.backbone.shape(prepared.model, (side, side))
        return [Shown(NAMES[k], (side, side), k, shape, row(k), row(CLASSES), across=quality.ACROSS) for k in range(CLASSES)]

    def plain(self, settings: Settings, folder: Path) -> nn.Module:
        return self.backbone.load(folder / "base.safetensors")

    def usual(self) -> tuple[str, ...]:
        return tuple(NAMES[:CLASSES])

    def conditions(self, settings: Settings, folder: Path, asked: list[Asked], device: torch.device) -> list[Condition]:
        """Prompts are names of the run's own: 0 to 9."""
        prompts = load_prompts(folder / "prompts.safetensors")
        if unknown := [own.text for own in asked if own.text not in prompts]:
            raise TrainerError(f"--prompts {unknown[0]!r} is unknown; expected some of {', '.join(n for n in prompts if n)}")
        return [self.backbone.collate([prompts[own.text]]) for own in asked]

    def images(self, settings: Settings, latents: list[Tensor], device: torch.device) -> list[Tensor]:
        return [decode(x) for x in latents]

    def evaluate(self, settings: Settings, folder: Path, weights: Path) -> dict[str, Any]:
        """Samples of both stages from the files of the run, their quality, the table and grid.png."""
        labels, known = self.labels(settings), self.backbone
        cond = tuple(c[labels] for c in self.table(load_prompts(folder / "prompts.safetensors")))
        distilled, start = (
            load_trained(known, origin.below(known, settings, lambda: self.plain(settings, folder)), weights),
            self.start(len(labels), settings.run.seed + 1),
        )
        made = self.from_base(settings, folder)
        made |= {("distilled", s.steps): decode(generate(distilled, start, cond, s, chunk=known.chunk)) for s in known.sampling}
        return quality.evaluate(made, labels, folder)


def base_hash(settings: Settings) -> str:
    """Of all that decides the base: settings, and what is written here."""
    about = settings.hash(base=True), BASE_OBJECTIVE, ARCHITECTURE, TOKENS, DROP
    return hashlib.sha256(repr(about).encode()).hexdigest()[:12]


# Flow matching with a little guidance trained in, where the noise is strong: more digits are what they were asked to be,
# at a slightly larger distance from the data (docs/digits.md).
BASE_OBJECTIVE = replace(
    OBJECTIVES["flow-matching"],
    reach=0.0,
    loss="l2",
    times="logit-normal",
    stratified=True,
    guidance_ratio=0.13,
    guidance_range=(0.55, 1.0),
)
