"""What any model must supply to be trained, and how one is found by its name.

The names stand in twinflow/backbones; the file of the same name here has BACKBONES, by the names on the command line.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from twinflow import backbones as known
from twinflow.objective import Condition
from twinflow.presets import Sampling
from twinflow.prompts import Prompt

from .. import TrainerError
from .images import ImageCodec
from .shifts import Shift
from .sizes import Size


class TextEncoder(Protocol):
    """Encodes prompts; drop it to free its memory.

    modules: its networks, which the run quantises and moves; without them it stays on the CPU.  device: where they compute,
    set by the run.
    """

    modules: list[nn.Module]
    device: torch.device

    def encode_text(self, prompts: list[str], references: list[list[Tensor]] | None = None, /) -> list[Prompt]:
        """Embeddings without padding, on the CPU; "" is the unconditional prompt.  references: for an edit model, the images
        (3, H, W) in [-1, 1] that belong to each prompt."""
        ...


class Backbone(Protocol):
    """One model.  Everything that differs between models stands behind these; it knows nothing of runs.

    core: what is known without weights or code.  name: on the command line.  prefix: of a LoRA's names in a file.
    sampling: recommended settings, best first.  pixels: sides of images are multiples of this.  factor: pixels that one
    latent is wide.  chunk: rows that may be sampled at once.  edits: whether prompts come with images.  unread: sections or
    names of settings that mean nothing to it.  text_parts: folders of a source with the text encoders.  size: of the
    published model, for the plan.  license: of weights that are trained from it, where we know it.  shift: of its own
    pipeline's times, None where it has none.
    """

    core: known.Backbone
    name: str
    prefix: str
    sampling: tuple[Sampling, ...]
    pixels: int
    factor: int
    chunk: int
    edits: bool
    unread: tuple[str, ...]
    license: str
    text_parts: tuple[str, ...]
    size: Size
    shift: Shift | None

    def recipe(self, mode: str) -> dict[str, Any]:
        """Settings (by option name) for "lora" or "full" that differ from the defaults in trainer.config."""
        ...

    def load(self, source: str = "", *, dtype: torch.dtype | None = None, distilled: Path | str | None = None) -> nn.Module:
        """The plain model, frozen, from a source; "" is the published one.  Raises TrainerError.

        distilled: a file or source with all weights of a TwinFlow model, second time embedder included, in place of its."""
        ...

    def outline(self, source: str = "", *, fetch: bool = False, distilled: Path | str | None = None) -> nn.Module | None:
        """What load gives, without values, from the headers of files; None where they are not here.

        fetch: from the hub, if need be.  distilled: as load has it.  Raises TrainerError for what load would refuse.
        """
        ...

    def sized(self, model: nn.Module) -> Any:
        """This one, but of the size of a model that load or outline gave, for the plan."""
        ...

    def longest(self, model: nn.Module) -> int:
        """Pixels of the longest side of an image that the model can take."""
        ...

    def velocity(self, model: nn.Module, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """v (B, C, H, W) at x and the one time t (B,): 1 is noise, a negative time is on the fake trajectory."""
        ...

    def check_encoders(self, asked: str) -> None:
        """Raises TrainerError for a place among --encoders that holds nothing for this model."""
        ...

    def text_encoder(self, source: str = "", *, dtype: torch.dtype = ..., device: Any = "cpu") -> TextEncoder: ...

    def token_counter(self, source: str = "") -> Callable[[str], dict[str, tuple[int, int]]]:
        """What a caption's tokens are counted with, no encoder being loaded: by what reads them, their number and how many
        are read at most; empty where it is surely read whole.  Raises TrainerError."""
        ...

    def image_codec(self, source: str = "", *, dtype: torch.dtype = ..., device: Any = "cpu") -> ImageCodec: ...

    def text_files(self, source: str) -> list[Path]:
        """The files that decide what the text encoders give."""
        ...

    def image_files(self, source: str) -> list[Path]:
        """The files that decide what the image encoder gives."""
        ...

    def collate(self, prompts: list[Prompt]) -> Condition:
        """The condition of a batch: tensors with the batch first, padded to the longest prompt."""
        ...

    def shape(self, model: nn.Module, size: tuple[int, int]) -> tuple[int, int, int]:
        """Of the latents (C, h, w) of an image of this size (height, width)."""
        ...

    def tokens(self, model: nn.Module, latents: Tensor) -> int:
        """That the transformer makes of each image of these (B, C, h, w)."""
        ...

    def idle(self, model: nn.Module) -> list[str]:
        """Full names of modules whose output nothing uses: they are neither trained nor given a LoRA."""
        ...

    def lora_targets(self, model: nn.Module, targets: str) -> list[str]:
        """Full names of the layers that get a LoRA, for a preset of this backbone or a comma-separated list."""
        ...

    def to_file(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """diffusers' names to those of the file that ComfyUI's stock loader takes whole."""
        ...

    def from_file(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of to_file."""
        ...

    def skeleton(self) -> nn.Module:
        """The published model without weights, on the device and in the dtype that are the default here."""
        ...

    def codec_skeleton(self) -> ImageCodec:
        """The published autoencoder without weights, for the plan, likewise; asked only where size.has_encoders."""
        ...

    def inputs(self, model: nn.Module, pixels: int, dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of the model's forward for one square image, for the plan."""
        ...


def trainable() -> list[str]:
    """Names on the command line."""
    return [name for name, file in known.models().items() if find_spec(f".{file}", __package__)]


def backbone(name: str) -> Backbone:
    """The backbone of this name, alias or repository.  Raises TrainerError."""
    name = known.canonical(name)
    if name not in trainable():
        raise TrainerError(f"--model {name!r} is unknown; expected one of {', '.join(trainable())}")
    return import_module(f".{known.models()[name]}", __package__).BACKBONES[name]
