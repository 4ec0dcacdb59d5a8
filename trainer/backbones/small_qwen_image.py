"""What the small Qwen-Images share whose base is trained here: a new transformer, one from a base file, no encoders.

Pixels stand for latents, so there is no VAE; prompts are learnt tokens, so there is no text encoder.  All else is Qwen-Image:
class, key names, time conditioning.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from twinflow.weights import load, read_header

from .. import TrainerError
from . import sources
from .qwen_image import QwenImage
from .shifts import Shift


class SmallQwenImage(QwenImage):
    """sizes holds the whole architecture.  pixels: the side of its images.  shipped: the base that comes with the project."""

    text_parts = ()  # prompts are the run's own
    shift: Shift | None = None
    masked = False  # prompts are of one length
    shipped: Path | None = None

    def fresh(self, generator: torch.Generator) -> nn.Module:
        """A new transformer.  Modulation and output start at zero (adaLN-Zero), as DiTs are trained from scratch."""
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            model: Any = diffusers.QwenImageTransformer2DModel(**self.size.config)  # imported only when it is used
        modulation = [layer for block in model.transformer_blocks for layer in (block.img_mod[1], block.txt_mod[1])]
        for layer in [*modulation, model.norm_out.linear, model.proj_out]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        return model

    def load(
        self, source: str | Path = "", *, dtype: torch.dtype | None = None, distilled: Path | str | None = None
    ) -> nn.Module:
        """The transformer from a base file; "" is the one that comes with the project.  Raises TrainerError.

        distilled: a file with all weights of a TwinFlow model, in place of the base's.
        """
        file = distilled or source or self.shipped or ""
        if not file:
            raise TrainerError(f"{self.name} has no published model; its run trains a base (--base FILE takes another)")
        model = self.fresh(torch.Generator().manual_seed(0))
        if distilled:
            self.core.time.install(model)
        sources.check_fits(tensors := read_header(file).tensors, model, file)
        if more := sorted(tensors.keys() - model.state_dict().keys()):
            raise TrainerError(f"{file}: holds {more[0]!r} ({len(more)} such), unknown to {self.name}")
        model.load_state_dict(load(file))
        return model.eval()

    def outline(self, source: str | Path = "", *, fetch: bool = False, distilled: Path | str | None = None) -> nn.Module | None:
        """None where the base is yet to be trained.  Raises TrainerError and WeightsError."""
        return self.load(source, distilled=distilled) if distilled or source or self.shipped else None

    def shape(self, model: nn.Module, size: tuple[int, int]) -> tuple[int, int, int]:
        return self.size.channels, self.pixels // self.factor, self.pixels // self.factor
