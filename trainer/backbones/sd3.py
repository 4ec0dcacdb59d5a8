"""SD3.5: the velocity of diffusers' own SD3Transformer2DModel, unmodified.

It hears the noise time times 1000.  cond is (embeds (B, L, D), pooled (B, P)); padding is attended to, as in the base.
"""

import math

import torch
from torch import Tensor, nn

from twinflow import layouts
from twinflow.prompts import Prompt
from twinflow.time_embedding import SECOND_EMBEDDERS, fold, stack

from .family import Family, blocks


def velocity(model, x: Tensor, t: Tensor, r: Tensor, cond, *, time: str = "two") -> Tensor:
    """v (B, C, H, W) from t to r, both (B,), in the model's dtype.  H and W are even.

    time: "two" needs the second embedder installed; "fold" gives t - r / 2 to any SD3, as a classic LoRA wants.
    """
    embeds, pooled = cond
    core = getattr(model, "module", model)  # what a distributed wrapper holds
    dtype = core.pos_embed.proj.weight.dtype
    times = stack(t, r) if time == "two" else fold(t, r)
    return model(
        hidden_states=x.to(dtype),
        timestep=times * 1000,
        encoder_hidden_states=embeds.to(dtype),
        pooled_projections=pooled.to(dtype),
        return_dict=False,
    )[0]


class SD3(Family):
    name = base_model = "sd3.5"
    repository = "stabilityai/stable-diffusion-3.5-medium"
    prefix = "transformer."  # all that ComfyUI's stock LoRA loader maps to SD3's fused layers
    second_embedder = SECOND_EMBEDDERS["sd3.5"]
    layout = layouts.SD3
    transformer_class, pipeline_class, vae_class = "SD3Transformer2DModel", "StableDiffusion3Pipeline", "AutoencoderKL"
    text_parts = tuple(f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))
    presets = {
        "attention": r"transformer_blocks\..*\.attn2?\..*",
        "attention+mlp": r"transformer_blocks\..*\.(attn2?|ff|ff_context)\..*",
    }
    velocity = staticmethod(velocity)

    def architecture(self, shapes: dict[str, tuple[int, ...]]) -> dict:
        caption, joint = shapes["context_embedder.weight"]
        count = blocks(shapes, "transformer_blocks.{}.attn.to_q.weight")
        (head,) = shapes.get("transformer_blocks.0.attn.norm_q.weight", (64,))
        return dict(
            in_channels=shapes["pos_embed.proj.weight"][1],
            patch_size=shapes["pos_embed.proj.weight"][2],
            out_channels=shapes["proj_out.bias"][0] // shapes["pos_embed.proj.weight"][2] ** 2,
            num_layers=count,
            attention_head_dim=head,
            num_attention_heads=shapes["pos_embed.proj.bias"][0] // head,
            joint_attention_dim=joint,
            caption_projection_dim=caption,
            pooled_projection_dim=shapes["time_text_embed.text_embedder.linear_1.weight"][1],
            pos_embed_max_size=math.isqrt(shapes["pos_embed.pos_embed"][1]),
            dual_attention_layers=[i for i in range(count) if f"transformer_blocks.{i}.attn2.to_q.weight" in shapes],
            qk_norm="rms_norm" if "transformer_blocks.0.attn.norm_q.weight" in shapes else None,
        )

    def encode_prompt(self, pipeline, text: str) -> Prompt:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            text, None, None, device=pipeline.device, do_classifier_free_guidance=False
        )
        return Prompt(text, embeds[0], pooled[0])

    def collate(self, prompts: list[Prompt]) -> tuple[Tensor, Tensor]:
        """Embeds (B, L, D), which all have the same length, and pooled (B, P)."""
        return torch.stack([p.embeds for p in prompts]), torch.stack([p.pooled for p in prompts])

    def idle(self, model: nn.Module) -> list[str]:
        last = f"transformer_blocks.{len(model.transformer_blocks) - 1}.attn."  # the text ends in it
        return [last + name for name in ("add_q_proj", "norm_added_q")]


class Large(SD3):
    name = "sd3.5-large"
    repository = "stabilityai/stable-diffusion-3.5-large"


BACKBONE, LARGE = SD3(), Large()
