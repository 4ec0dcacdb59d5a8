"""What any model must supply to be trained, and the table of those that do.  A new backbone is one file and one row."""

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from twinflow.objective import Condition, Velocity
from twinflow.presets import Sampling
from twinflow.prompts import Prompt
from twinflow.time_embedding import SecondEmbedder

from .. import TrainerError

BACKBONES: dict[str, str] = {  # name on the command line -> module here, and what is taken from it
    "digits": "digits.BACKBONE",
    "qwen-image": "qwen_image.BACKBONE",
    "qwen-image-edit": "qwen_image_edit.BACKBONE",
    "z-image": "z_image.BACKBONE",
    "z-image-turbo": "z_image.TURBO",
    "sd3.5": "sd3.BACKBONE",
    "sd3.5-large": "sd3.LARGE",
    "sana": "sana.BACKBONE",
    "sana-0.6b": "sana.SMALL",
    "openuni": "openuni.BACKBONE",
}


class Prepared(Protocol):
    """model: the plain network.  data and, or None, validation: a loop.Data.  The rest is the backbone's own."""

    model: nn.Module
    data: Any
    validation: Any


class Backbone(Protocol):
    """One model family.  Everything that differs between families stands behind these; the loop knows no names."""

    name: str
    base_model: str  # what the metadata of a file names as its origin
    prefix: str  # of a LoRA's names in a file
    sampling: tuple[Sampling, ...]  # recommended settings, best first
    second_embedder: SecondEmbedder
    chunk: int  # rows that may be sampled at once
    unread: tuple[str, ...]  # groups of settings (see trainer.config) that mean nothing to this model

    def recipe(self, mode: str) -> dict:
        """The settings (names of trainer.config.Config) that work for this backbone in "lora" or "full" mode."""

    def prepare(self, config, folder: Path, accelerator, log) -> Prepared:
        """All that training needs, made or read from where an earlier run left it; encoders are gone when it returns."""

    def preview(self, network: Velocity, prepared: Prepared, device) -> dict[str, list[Tensor]]:
        """Columns of a grid by title: pictures (across, C, H, W) in [0, 1], one tensor a row, always from the same noise."""

    def evaluate(self, config, folder: Path, weights: Path) -> dict:
        """What is measured of the finished file, for metrics.json."""

    def plain(self, config, folder: Path) -> nn.Module:
        """The model that a finished run started from."""

    def conditions(self, config, folder: Path, texts: list[str], references: list[Path], device) -> dict[str, Condition]:
        """By prompt, each for one row, for a finished run; no texts: those of the run.  references: pictures to edit."""

    def shape(self, model: nn.Module, size: tuple[int, int]) -> tuple[int, int, int]:
        """Of the latents (C, h, w) of a picture of this size (height, width)."""

    def pictures(self, config, latents: list[Tensor], device) -> list[Tensor]:
        """Pictures (B, C, H, W) in [0, 1] of latents (B, C, h, w), each of any size."""

    def velocity(self, model: nn.Module, x: Tensor, t: Tensor, r: Tensor, cond: Condition, *, time: str) -> Tensor:
        """v(x_t, t, r): x (B, C, H, W), t and r (B,) with t = 1 noise; time "two" (stacked) or "fold" (t - r / 2)."""

    def collate(self, prompts: list[Prompt]) -> Condition:
        """The condition of a batch: tensors with the batch first, padded to the longest prompt."""

    def idle(self, model: nn.Module) -> list[str]:
        """Full names of modules whose output nothing hears: they are neither trained nor given a LoRA."""

    def lora_targets(self, model: nn.Module, targets: str) -> list[str]:
        """Full names of the modules that get a LoRA, for a preset of this backbone or a comma-separated list."""

    def to_file(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """diffusers names to those of the file that ComfyUI's stock loader takes whole."""

    def from_file(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of to_file."""


def backbone(name: str) -> Backbone:
    """The backbone of this name.  Raises TrainerError."""
    if name not in BACKBONES:
        raise TrainerError(f"--model {name!r} is unknown; expected one of {', '.join(BACKBONES)}")
    module, attribute = BACKBONES[name].split(".")
    return getattr(import_module(f".{module}", __package__), attribute)
