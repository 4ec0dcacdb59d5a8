"""Krea 2: the velocity of diffusers' own Krea2Transformer2DModel, unmodified.

Its latents are packed into patches; its time is that of the noise, in [0, 1].  cond is (embeds (B, L, D), mask (B, L) bool), D
of several layers of the text encoder, one behind the other.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from twinflow.backbones import krea2 as known
from twinflow.objective import Condition
from twinflow.prompts import Prompt

from .diffusers_model import DiffusersBackbone
from .qwen_image import pack, trim, unpack
from .shifts import Shift
from .sizes import Size

PATCH = 2  # the transformer's settings do not have it
SIZE = Size(dict(), channels=16, text=8.3)


class Krea2(DiffusersBackbone):
    core = known.BACKBONE
    prefix = "transformer."  # diffusers takes the other for the makers' own names
    transformer_class, pipeline_class, vae_class = "Krea2Transformer2DModel", "Krea2Pipeline", "AutoencoderKLQwenImage"
    single = {"text_encoder": "qwen3-vl", "vae": "qwen-vae"}
    license = "Krea 2 Community License: https://www.krea.ai/krea-2-licensing"
    presets = {
        "attention": r"transformer_blocks\..*\.attn\..*",
        "attention+mlp": r"transformer_blocks\..*\.(attn|ff)\..*",
    }
    sizes = dict.fromkeys(known.BACKBONE.models, SIZE)
    limits: ClassVar[dict[str, int]] = {"the text encoder": 507}  # of 512, with five of the chat template behind the caption

    def __init__(self, name: str):
        super().__init__(name)
        self.shift = Shift(low=(256, 0.5), high=(6400, 1.15))
        if name == "krea2-turbo":
            self.shift = Shift(self.shift.of(6400))  # whatever the size

    def recipe(self, mode: str) -> dict[str, Any]:
        """Turbo without guidance: it is distilled in."""
        return dict(guidance=1.0) if self.name == "krea2-turbo" else {}

    def velocity(self, model: Any, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """H and W are even.  Padding is masked, and takes no position."""
        embeds, mask = trim(*cond)
        dtype = model.final_layer.scale_shift_table.dtype  # never quantised, never under a LoRA
        patches, grid = pack(x.to(dtype), PATCH)
        out = model(
            hidden_states=patches,
            encoder_hidden_states=embeds.to(dtype).unflatten(-1, (model.config.num_text_layers, -1)),
            timestep=t,
            position_ids=positions(embeds.shape[1], grid, x.device),
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]
        return unpack(out, grid, PATCH)

    def architecture(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        w = self.core.widths(shapes)
        return dict(
            in_channels=w["channels"] * PATCH**2,
            num_layers=w["layers"],
            attention_head_dim=w["head"],
            num_attention_heads=w["heads"],
            num_key_value_heads=w["groups"],
            intermediate_size=w["hidden"],
            timestep_embed_dim=w["features"],
            text_hidden_dim=w["text"] // w["taps"],
            num_text_layers=w["taps"],
            text_num_attention_heads=w["text_heads"],
            text_num_key_value_heads=w["text_groups"],
            text_intermediate_size=w["text_hidden"],
            num_layerwise_text_blocks=w["layerwise"],
            num_refiner_text_blocks=w["refiners"],
            axes_dims_rope=list(w["axes"]),
        )

    def channels(self, model: Any) -> int:
        return model.config.in_channels // PATCH**2

    def inputs(self, model: Any, pixels: int, dtype: torch.dtype) -> dict[str, Any]:
        side, taps = pixels // self.factor // PATCH, model.config.num_text_layers
        text = self.text(taps * model.config.text_hidden_dim, dtype)
        return dict(
            hidden_states=torch.zeros(1, side**2, model.config.in_channels, dtype=dtype),
            encoder_hidden_states=text.unflatten(-1, (taps, -1)),
            timestep=torch.zeros(1),
            position_ids=positions(text.shape[1], (side, side), text.device),
        )

    def count_tokens(self, pipeline: Any, text: str) -> dict[str, int]:
        tokens = pipeline.tokenizer(pipeline.prompt_template_encode_prefix + text, verbose=False).input_ids
        return {"the text encoder": len(tokens) - pipeline.prompt_template_encode_start_idx}

    def encode_prompt(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        (embeds,), (mask,) = pipeline.encode_prompt(text, device=device)
        return Prompt(text, embeds[mask].flatten(1))


def positions(words: int, grid: tuple[int, int], device: Any) -> Tensor:
    """Of the tokens (L + N, 3): 0, row, column, of a text all 0."""
    line = lambda number: torch.arange(number, device=device)
    return F.pad(torch.cartesian_prod(line(1), line(grid[0]), line(grid[1])), (0, 0, words, 0))


BACKBONES = {name: Krea2(name) for name in known.BACKBONE.models}
