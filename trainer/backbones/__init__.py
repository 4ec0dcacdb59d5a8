"""What any model must supply to be trained, and the table of those that do.  A new backbone is one file and one row."""

from importlib import import_module
from typing import Protocol

from torch import Tensor, nn

from twinflow.objective import Condition
from twinflow.presets import Sampling
from twinflow.prompts import Prompt
from twinflow.time_embedding import SecondEmbedder

from .. import TrainerError

BACKBONES: dict[str, str] = {"digits": "digits"}  # name on the command line -> module here


class Backbone(Protocol):
    """One model family.  Everything that differs between families stands behind these; the loop knows no names."""

    name: str
    base_model: str  # what the metadata of a file names as its origin
    prefix: str  # of a LoRA's names in a file
    sampling: tuple[Sampling, ...]  # recommended settings, best first
    second_embedder: SecondEmbedder

    def recipe(self, mode: str) -> dict:
        """The settings (names of trainer.config.Config) that work for this backbone in "lora" or "full" mode."""

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
    return import_module(f".{BACKBONES[name]}", __package__).BACKBONE
