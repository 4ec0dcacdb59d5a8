"""SANA: the velocity of diffusers' own SanaTransformer2DModel, unmodified.

It hears the noise time times 1000.  cond is (embeds (B, L, D), mask (B, L) bool).
"""

import inspect

from torch import Tensor

from twinflow.prompts import Prompt
from twinflow.time_embedding import SECOND_EMBEDDERS, fold, stack

from .family import Family, blocks

HEADS = {1152: (36, 32, 16, 72), 2240: (70, 32, 20, 112)}  # of 0.6B and 1.6B by width: heads and their widths, self and cross


def velocity(model, x: Tensor, t: Tensor, r: Tensor, cond, *, time: str = "two") -> Tensor:
    """v (B, C, H, W) from t to r, both (B,), in the model's dtype.

    time: "two" needs the second embedder installed; "fold" gives t - r / 2 to any SANA, as a classic LoRA wants.
    """
    embeds, mask = cond
    core = getattr(model, "module", model)  # what a distributed wrapper holds
    dtype = core.scale_shift_table.dtype  # never quantised, never under a LoRA
    times = stack(t, r) if time == "two" else fold(t, r)
    return model(
        hidden_states=x.to(dtype),
        timestep=times * 1000,
        encoder_hidden_states=embeds.to(dtype),
        encoder_attention_mask=mask.to(dtype),
        return_dict=False,
    )[0]


class Sana(Family):
    name = base_model = "sana"
    repository = "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"
    pixels = factor = 32
    prefix = "transformer."  # diffusers': ComfyUI has no SANA
    second_embedder = SECOND_EMBEDDERS["sana"]
    transformer_class, pipeline_class, vae_class = "SanaTransformer2DModel", "SanaPipeline", "AutoencoderDC"
    presets = {"attention": r"transformer_blocks\..*\.attn[12]\..*"}
    velocity = staticmethod(velocity)

    def architecture(self, shapes: dict[str, tuple[int, ...]]) -> dict:
        """Of the two published widths; how another is shared among heads is in no tensor."""
        width, channels, patch, _ = shapes["patch_embed.proj.weight"]
        heads, head, cross_heads, cross_head = HEADS[width]
        return dict(
            in_channels=channels,
            out_channels=shapes["proj_out.bias"][0] // patch**2,
            num_attention_heads=heads,
            attention_head_dim=head,
            num_layers=blocks(shapes, "transformer_blocks.{}.attn1.to_q.weight"),
            num_cross_attention_heads=cross_heads,
            cross_attention_head_dim=cross_head,
            cross_attention_dim=width,
            caption_channels=shapes["caption_projection.linear_1.weight"][1],
            mlp_ratio=shapes["transformer_blocks.0.ff.conv_point.weight"][1] / width,
            patch_size=patch,
            qk_norm="rms_norm_across_heads" if "transformer_blocks.0.attn1.norm_q.weight" in shapes else None,
        )

    def encode_prompt(self, pipeline, text: str) -> Prompt:
        """With the instruction that the pipeline puts before a prompt; the unconditional one goes without, as there."""
        instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        embeds, mask, _, _ = pipeline.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            device=pipeline.device,
            complex_human_instruction=instruction if text else None,
        )
        return Prompt(text, embeds[0][mask[0].bool()])


class Small(Sana):
    name = "sana-0.6b"
    repository = "Efficient-Large-Model/Sana_600M_1024px_diffusers"


BACKBONE, SMALL = Sana(), Small()
