"""Qwen-Image: the velocity of diffusers' own QwenImageTransformer2DModel, unmodified.

Its latents are packed into patches; its time is that of the noise, in [0, 1].  cond is (embeds (B, L, D), mask (B, L) bool)
and, for editing, the latents of each reference image (B, C, h, w), which may differ in size from each other and from x.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from twinflow.backbones import qwen_image as known
from twinflow.objective import Condition
from twinflow.prompts import Prompt

from .diffusers_model import DiffusersBackbone
from .shifts import Shift
from .sizes import Size


def trim(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Without the padding that no row needs; mask None where none is left."""
    mask = mask.bool()
    length = int(mask.any(0).nonzero().max()) + 1 if mask.any() else 1
    embeds, mask = embeds[:, :length], mask[:, :length]
    return embeds, None if mask.all() else mask


def pack(x: Tensor, p: int) -> tuple[Tensor, tuple[int, int]]:
    """(B, C, H, W) to patches (B, H/p W/p, C p p), and the grid (H/p, W/p)."""
    b, c, h, w = x.shape
    grid = h // p, w // p
    return x.reshape(b, c, grid[0], p, grid[1], p).permute(0, 2, 4, 1, 3, 5).reshape(b, grid[0] * grid[1], -1), grid


def unpack(patches: Tensor, grid: tuple[int, int], p: int) -> Tensor:
    """The inverse of pack."""
    x = patches.reshape(len(patches), *grid, -1, p, p).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(len(patches), -1, grid[0] * p, grid[1] * p)


class QwenImage(DiffusersBackbone):
    core = known.BACKBONE
    transformer_class, pipeline_class, vae_class = "QwenImageTransformer2DModel", "QwenImagePipeline", "AutoencoderKLQwenImage"
    single = {"text_encoder": "qwen2.5-vl", "vae": "qwen-vae"}
    presets = {"attention": r"transformer_blocks\..*\.attn\..*", "attention+mlp": r"transformer_blocks\..*(\.attn|_mlp)\..*"}
    shift: Shift | None = Shift(low=(256, 0.5), high=(8192, 0.9))
    sizes = dict.fromkeys(known.BACKBONE.models, Size(dict(), channels=16, text=15.4))
    limits: ClassVar[dict[str, int]] = {"the text encoder": 1024}  # from behind the template's start, its end counted

    def velocity(self, model: Any, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """H and W are multiples of the patch size.  The plain model rounds t to its own dtype."""
        embeds, mask, *references = cond
        embeds, mask = trim(embeds, mask)
        dtype = model.txt_norm.weight.dtype  # never quantised, never under a LoRA
        parts, grids = zip(*(pack(image.to(dtype), model.config.patch_size) for image in (x, *references)))
        patches = torch.cat(parts, 1)
        out = model(
            hidden_states=patches,
            timestep=t,
            encoder_hidden_states=embeds.to(dtype),
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, *grid) for grid in grids]] * len(x),
            return_dict=False,
        )[0]
        return unpack(out[:, : parts[0].shape[1]], grids[0], model.config.patch_size)

    def architecture(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        w = self.core.widths(shapes)
        return dict(
            patch_size=2,
            in_channels=shapes["img_in.weight"][1],
            out_channels=w["channels"],
            num_layers=w["layers"],
            attention_head_dim=w["head"],
            num_attention_heads=w["heads"],
            joint_attention_dim=w["text"],
            axes_dims_rope=list(w["axes"]),
        )

    def channels(self, model: Any) -> int:
        return model.config.out_channels  # what goes in is packed

    def inputs(self, model: Any, pixels: int, dtype: torch.dtype) -> dict[str, Any]:
        side = pixels // self.factor // model.config.patch_size
        images = 1 + self.size.references
        return dict(
            hidden_states=torch.zeros(1, images * side**2, model.config.in_channels, dtype=dtype),
            timestep=torch.zeros(1),
            encoder_hidden_states=self.text(model.config.joint_attention_dim, dtype),
            encoder_hidden_states_mask=None,
            img_shapes=[[(1, side, side)] * images],
        )

    def count_tokens(self, pipeline: Any, text: str) -> dict[str, int]:
        tokens = pipeline.tokenizer(pipeline.prompt_template_encode.format(text), verbose=False).input_ids
        return {"the text encoder": len(tokens) - pipeline.prompt_template_encode_start_idx}

    def encode_prompt(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        embeds, _ = pipeline.encode_prompt(text, device=device)  # one prompt has no padding
        return Prompt(text, embeds[0])

    def idle(self, model: Any) -> list[str]:
        last = f"transformer_blocks.{len(model.transformer_blocks) - 1}."  # nothing uses the text that leaves it
        return [last + name for name in ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")]


BACKBONES = {name: QwenImage(name) for name in known.BACKBONE.models}
