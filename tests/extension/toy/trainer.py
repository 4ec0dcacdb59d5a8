"""Toy in the trainer: its transformer, a text encoder that reads bytes, and an image codec that averages pixels."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinflow.backbones import toy as known
from twinflow.objective import Condition
from twinflow.prompts import Prompt
from twinflow.time_embedding import sinusoid

from .. import TrainerError
from . import sources
from .diffusers_model import DiffusersBackbone
from .sizes import Size

WIDTHS = dict(width=32, channels=4, text=16, layers=2)
FACTOR = 8


class Clock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, u: Tensor) -> Tensor:
        return self.mlp(sinusoid(u, 64))


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.to_out(F.scaled_dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h)))


class Transformer(nn.Module):
    def __init__(self, width: int, channels: int, text: int, layers: int):
        super().__init__()
        self.proj_in, self.caption, self.proj_out = (
            nn.Linear(channels, width),
            nn.Linear(text, width),
            nn.Linear(width, channels),
        )
        self.clock, self.blocks = Clock(width), nn.ModuleList(Block(width) for _ in range(layers))
        self.checkpointing = False

    def enable_gradient_checkpointing(self) -> None:
        self.checkpointing = True

    def forward(self, x: Tensor, u: Tensor, embeds: Tensor, mask: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """u: 0 at the noise, 1 at the data."""
        share = (mask / mask.sum(1, keepdim=True))[..., None]
        h = self.proj_in(x.flatten(2).mT) + ((self.caption(embeds) * share).sum(1) + self.clock(u * 100))[:, None]
        for block in self.blocks:
            h = torch.utils.checkpoint.checkpoint(block, h, use_reentrant=False) if self.checkpointing else block(h)
        return (self.proj_out(h).mT.reshape(x.shape),)


class Reader:
    def encode_text(self, prompts: list[str], references: Any = None) -> list[Prompt]:
        table = torch.randn(256, WIDTHS["text"], generator=torch.Generator().manual_seed(0))
        return [Prompt(text, table[list(text.encode() or b" ")]) for text in prompts]


class Codec:
    vae = None

    def encode_image(self, pixels: Tensor) -> Tensor:
        small = F.avg_pool2d(pixels, FACTOR)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)

    def decode(self, latents: Tensor) -> Tensor:
        return (F.interpolate(latents[:, :3].float(), scale_factor=FACTOR) / 2 + 0.5).clamp(0, 1)


class Toy(DiffusersBackbone):
    core = known.BACKBONE
    pixels = factor = FACTOR
    presets = {"attention": r"blocks\..*\.to_.*"}
    sizes = {"toy": Size(WIDTHS, channels=WIDTHS["channels"], text=0.0, tokens=8)}

    def skeleton(self) -> Transformer:
        return Transformer(**self.size.config)

    def load(self, source: str = "", *, dtype: torch.dtype | None = None, distilled: Path | None = None) -> Transformer:
        if not (file := distilled or source):
            raise TrainerError("toy has no published model; expected --source FILE")
        tensors = self.from_file(sources.transformer_tensors(Path(file), str(file))[0])
        model = Transformer(**self.core.widths({name: tuple(t.shape) for name, t in tensors.items()}))
        if distilled:
            self.core.time.install(model)
        sources.check_fits({name: ("", tuple(t.shape)) for name, t in tensors.items()}, model, file)
        model.load_state_dict(tensors)
        return model.to(dtype or torch.float32).eval().requires_grad_(False)

    def velocity(self, model: nn.Module, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        embeds, mask = cond
        return model(x, 1 - t, embeds, mask)[0]

    def text_encoder(self, source: str = "", *, dtype: torch.dtype = torch.bfloat16, device: Any = "cpu") -> Reader:
        return Reader()

    def image_codec(self, source: str = "", *, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Codec:
        return Codec()

    def text_files(self, source: str) -> list[Path]:
        return []

    def image_files(self, source: str) -> list[Path]:
        return []

    def channels(self, model: nn.Module) -> int:
        return WIDTHS["channels"]

    def inputs(self, model: nn.Module, pixels: int, dtype: torch.dtype) -> dict[str, Any]:
        mask = torch.ones(1, self.size.tokens, dtype=dtype)
        return dict(x=self.latents(pixels, dtype), u=torch.zeros(1), embeds=self.text(WIDTHS["text"], dtype), mask=mask)


BACKBONES = {name: Toy(name) for name in known.BACKBONE.models}
