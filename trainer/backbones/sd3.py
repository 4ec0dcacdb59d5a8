"""SD3.5: the velocity of diffusers' own SD3Transformer2DModel, unmodified.

Its time is the noise's, times 1000.  cond is (embeds (B, L, D), pooled (B, P)); padding is attended to, as in the base.
"""

from typing import Any

import torch
from torch import Tensor

from twinflow.backbones import sd3 as known
from twinflow.objective import Condition
from twinflow.prompts import Prompt

from .diffusers_model import DiffusersBackbone
from .shifts import Shift
from .sizes import KL_16, Size

COMMON: dict[str, Any] = dict(channels=16, text=10.4, tokens=333, vae=KL_16)


class SD3(DiffusersBackbone):
    core = known.BACKBONE
    prefix = "transformer."  # all that ComfyUI's stock LoRA loader maps to SD3's fused layers
    transformer_class, pipeline_class, vae_class = "SD3Transformer2DModel", "StableDiffusion3Pipeline", "AutoencoderKL"
    text_parts = tuple(f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))
    limits = {"CLIP": 77, "T5": 256}  # start and end counted; side by side these are the 333 of the transformer
    single = {"text_encoder": "clip-l", "text_encoder_2": "clip-g", "text_encoder_3": "t5", "vae": "kl"}
    vae_config = dict(scaling_factor=1.5305, shift_factor=0.0609)
    presets = {
        "attention": r"transformer_blocks\..*\.attn2?\..*",
        "attention+mlp": r"transformer_blocks\..*\.(attn2?|ff|ff_context)\..*",
    }
    shift: Shift | None = Shift(3.0)
    sizes = {
        "sd3.5": Size(
            dict(
                num_layers=24,
                num_attention_heads=24,
                caption_projection_dim=1536,
                pos_embed_max_size=384,
                dual_attention_layers=tuple(range(13)),
                qk_norm="rms_norm",
            ),
            **COMMON,
        ),
        "sd3.5-large": Size(
            dict(
                num_layers=38,
                num_attention_heads=38,
                caption_projection_dim=2432,
                pos_embed_max_size=192,
                qk_norm="rms_norm",
            ),
            **COMMON,
        ),
    }

    def velocity(self, model: Any, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """H and W are even."""
        embeds, pooled = cond
        dtype = model.pos_embed.proj.weight.dtype  # never quantised, never under a LoRA
        return model(
            hidden_states=x.to(dtype),
            timestep=t * 1000,
            encoder_hidden_states=embeds.to(dtype),
            pooled_projections=pooled.to(dtype),
            return_dict=False,
        )[0]

    def architecture(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        w = self.core.widths(shapes)
        return dict(
            in_channels=w["channels"],
            patch_size=w["patch"],
            out_channels=shapes["proj_out.bias"][0] // w["patch"] ** 2,
            num_layers=w["layers"],
            attention_head_dim=w["head"],
            num_attention_heads=w["heads"],
            joint_attention_dim=w["text"],
            caption_projection_dim=w["caption"],
            pooled_projection_dim=w["pooled"],
            pos_embed_max_size=w["positions"],
            dual_attention_layers=list(w["dual"]),
            qk_norm="rms_norm" if w["normed"] else None,
        )

    def inputs(self, model: Any, pixels: int, dtype: torch.dtype) -> dict[str, Any]:
        config = model.config
        return dict(
            hidden_states=self.latents(pixels, dtype),
            timestep=torch.zeros(1),
            encoder_hidden_states=self.text(config.joint_attention_dim, dtype),
            pooled_projections=torch.zeros(1, config.pooled_projection_dim, dtype=dtype),
        )

    def count_tokens(self, pipeline: Any, text: str) -> dict[str, int]:
        of = lambda *tokenizers: max(len(tokenizer(text, verbose=False).input_ids) for tokenizer in tokenizers)
        return {"CLIP": of(pipeline.tokenizer, pipeline.tokenizer_2), "T5": of(pipeline.tokenizer_3)}

    def encode_prompt(self, pipeline: Any, text: str, device: torch.device) -> Prompt:
        embeds, _, pooled, _ = pipeline.encode_prompt(text, None, None, device=device, do_classifier_free_guidance=False)
        return Prompt(text, embeds[0], pooled[0])

    def collate(self, prompts: list[Prompt]) -> tuple[Tensor, Tensor]:
        """Embeds (B, L, D), which all have the same length, and pooled (B, P)."""
        pooled = [p.pooled for p in prompts if p.pooled is not None]
        return torch.stack([p.embeds for p in prompts]), torch.stack(pooled)

    def longest(self, model: Any) -> int:
        return model.config.pos_embed_max_size * model.config.patch_size * self.factor

    def idle(self, model: Any) -> list[str]:
        last = f"transformer_blocks.{len(model.transformer_blocks) - 1}.attn."  # the text ends in it
        return [last + name for name in ("add_q_proj", "norm_added_q")]


BACKBONES = {name: SD3(name) for name in known.BACKBONE.models}
