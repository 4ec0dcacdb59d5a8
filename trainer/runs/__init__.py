"""A run, from its settings to its folder: preparing, previews, judging, the last page.

Most backbones are trained from images and captions (images.py); a backbone with a run of its own has a file here.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from twinflow.objective import Condition, Velocity

from ..backbones import Backbone
from ..backbones.digits import Digits
from ..backbones.emoji import Emoji
from ..config import Settings
from ..training.log import Log
from .digits import DigitsRun
from .emoji import EmojiRun
from .images import ImageRun


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

    def preview(self, network: Velocity, prepared: Any, device: torch.device) -> dict[str, list[Tensor]]:
        """Columns of a grid by title: images (across, C, H, W) in [0, 1], one tensor a row, always from the same noise."""
        ...

    def evaluate(self, settings: Settings, folder: Path, weights: Path) -> dict[str, Any]:
        """What is measured of the finished file, for metrics.json."""
        ...

    def plain(self, settings: Settings, folder: Path) -> nn.Module:
        """The model that a finished run started from."""
        ...

    def conditions(
        self, settings: Settings, folder: Path, texts: list[str], references: list[Path], device: torch.device
    ) -> dict[str, Condition]:
        """By prompt, each for one row, for a finished run; no texts: those of the run.  references: images to edit."""
        ...

    def images(self, settings: Settings, latents: list[Tensor], device: torch.device) -> list[Tensor]:
        """Images (B, C, H, W) in [0, 1] of latents (B, C, h, w), each of any size."""
        ...


def run_of(backbone: Backbone) -> Run:
    if isinstance(backbone, Digits):
        return DigitsRun(backbone)
    return EmojiRun(backbone) if isinstance(backbone, Emoji) else ImageRun(backbone)
