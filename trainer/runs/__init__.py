"""A run, from its settings to its folder: preparing, previews, judging, the last page.

Most backbones are trained from images and captions (images.py); a backbone with a run of its own has a file here.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from twinflow.objective import Condition

from ..backbones import Backbone
from ..backbones.digits import Digits
from ..backbones.emoji import Emoji
from ..config.settings import Settings
from ..data.prompts import Prompt
from ..training.log import Log
from .digits import DigitsRun
from .emoji import EmojiRun
from .images import ImageRun
from .previews import Shown


class Prepared(Protocol):
    """model: the plain network.  data and, or None, validation: a training.loop.Data.  The rest is the run's own."""

    model: nn.Module
    data: Any
    validation: Any


class Run(Protocol):
    """A kind of run: what is done around the training of its backbone."""

    backbone: Any

    def prepare(self, settings: Settings, folder: Path, accelerator: Accelerator, log: Log) -> Prepared:
        """All that training needs, made or read from where an earlier run left it; encoders are gone when it returns."""
        ...

    def shown(self, settings: Settings, prepared: Any) -> list[Shown]:
        """The rows of the sample grids."""
        ...

    def evaluate(self, settings: Settings, folder: Path, weights: Path) -> dict[str, Any]:
        """What is measured of the finished file, for metrics.json."""
        ...

    def plain(self, settings: Settings, folder: Path) -> nn.Module:
        """The model that a finished run started from."""
        ...

    def usual(self) -> tuple[str, ...]:
        """What trainer.generate draws where no prompts are given; none: some have to be."""
        ...

    def conditions(self, settings: Settings, folder: Path, asked: list[Prompt], device: torch.device) -> list[Condition]:
        """Of each prompt, for one image, for a finished run.  Raises TrainerError."""
        ...

    def images(self, settings: Settings, latents: list[Tensor], device: torch.device) -> Iterable[Tensor]:
        """Images (B, C, H, W) in [0, 1] of latents (B, C, h, w), each of any size, in their order."""
        ...


def run_of(backbone: Backbone) -> Run:
    if isinstance(backbone, Digits):
        return DigitsRun(backbone)
    return EmojiRun(backbone) if isinstance(backbone, Emoji) else ImageRun(backbone)
