"""SANA: the velocity of diffusers' own SanaTransformer2DModel, unmodified.

Its time is the noise's, times 1000.  cond is (embeds (B, L, D), mask (B, L) bool).
"""

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor

from twinflow.backbones import sana as known
from twinflow.objective import Condition
from twinflow.prompts import Prompt

from .diffusers_model import DiffusersBackbone
from .shifts import Shift
from .sizes import DC, Size

SMALL = dict(
    num_attention_heads=36,
    num_layers=28,
    num_cross_attention_heads=16,
    cross_attention_head_dim=72,
    cross_attention_dim=1152,
)


class Sana(DiffusersBackbone):
    core = known.BACKBONE
    pixels = factor = 32
    prefix = "transformer."  # diffusers': ComfyUI has no SANA
    transformer_class, pipeline_class, vae_class = "SanaTransformer2DModel", "SanaPipeline", "AutoencoderDC"
    presets = {"attention": r"transformer_blocks\..*\.attn[12]\..*"}
    shift: Shift | None = Shift(3.0)
    sizes = {name: Size(size, channels=32, text=4.9, vae=DC) for name, size in {"sana": dict(), "sana-0.6b": SMALL}.items()}
    limits: ClassVar[dict[str, int]] = {"the text encoder": 300}  # besides the instruction but for its two last tokens

    def velocity(self, model: Any, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        embeds, mask = cond
        dtype = model.scale_shift_table.dtype  # never quantised, never under a LoRA
        return model(
            hidden_states=x.to(dtype),
            timestep=t * 1000,
            encoder_hidden_states=embeds.to(dtype),
            encoder_attention_mask=mask.to(dtype),
            return_dict=False,
        )[0]

    def architecture(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        w = self.core.widths(shapes)
        return dict(
            in_channels=w["channels"],
            out_channels=w["out"],
            num_attention_heads=w["heads"],
            attention_head_dim=w["head"],
            num_layers=w["layers"],
            num_cross_attention_heads=w["cross_heads"],
            cross_attention_head_dim=w["cross_head"],
            cross_attention_dim=w["width"],
            caption_channels=w["text"],
            mlp_ratio=w["mlp"],
            patch_size=w["patch"],
            qk_norm="rms_norm_across_heads" if w["normed"] else None,
        )

    def inputs(self, model: Any, pixels: int, dtype: torch.dtype) -> dict[str, Any]:
        text = self.text(model.config.caption_channels, dtype)
        return dict(hidden_states=self.latents(pixels, dtype), timestep=torch.zeros(1), encoder_hidden_states=text)

    def count_tokens(self, pipeline: Any, text: str) -> dict[str, int]:
        (text,) = pipeline._text_preprocessing([text], clean_caption=False)
        before = "\n".join(instruction(pipeline)) if text else ""
        tokens = lambda text: len(pipeline.tokenizer(text, verbose=False).input_ids)
        return {"the text encoder": tokens(before + text) - (tokens(before) - 2 if before else 0)}

    def encode_prompt(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        """With the instruction that the pipeline puts before a prompt; the unconditional one goes without, as there."""
        embeds, mask, _, _ = pipeline.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            device=device,
            complex_human_instruction=instruction(pipeline) if text else None,
        )
        return Prompt(text, embeds[0][mask[0].bool()])


def instruction(pipeline: Any) -> list[str]:
    return inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default


BACKBONES = {name: Sana(name) for name in known.BACKBONE.models}
