"""Qwen-Image: the velocity of diffusers' own QwenImageTransformer2DModel, unmodified.

It eats latents packed into patches and hears the noise time in [0, 1].  cond is (embeds (B, L, D), mask (B, L) bool)
and, for editing, the latents of each reference picture (B, C, h, w), which may differ in size from each other and from x.
"""

import inspect

import torch
from torch import Tensor, nn

from twinflow import layouts
from twinflow.prompts import Prompt
from twinflow.time_embedding import SECOND_EMBEDDERS, fold, stack

from .family import Family, axes, blocks


def velocity(model, x: Tensor, t: Tensor, r: Tensor, cond, *, time: str = "two", exact: bool = True) -> Tensor:
    """v (B, C, H, W) from t to r, both (B,), in the model's dtype.  H and W are multiples of the patch size.

    time: "two" needs the second embedder installed; "fold" gives t - r / 2 to any Qwen-Image, as a classic LoRA wants.
    exact: both times reach the embedder as float32; False lets the model round them to its own dtype, as the released
    code does (bfloat16 makes .999 a 1).  A folded time is always rounded: the plain model takes it no other way.
    """
    embeds, mask, *references = cond
    embeds, mask = trim(embeds, mask)
    core = getattr(model, "module", model)  # what a distributed wrapper holds
    dtype = core.txt_norm.weight.dtype  # never quantised, never under a LoRA
    through = torch.bfloat16 if exact and dtype != torch.float64 else None  # autocast makes a float32 model round, too
    times = stack(t, r, through=through) if time == "two" else fold(t, r)
    parts, grids = zip(*(pack(image.to(dtype), core.config.patch_size) for image in (x, *references)))
    patches = torch.cat(parts, 1)
    out = model(
        hidden_states=patches,
        timestep=times,
        encoder_hidden_states=embeds.to(dtype),
        encoder_hidden_states_mask=mask,
        img_shapes=[[(1, *grid) for grid in grids]] * len(x),
        return_dict=False,
        **text_arguments(core, embeds, mask, patches.shape[1]),
    )[0]
    return unpack(out[:, : parts[0].shape[1]], grids[0], core.config.patch_size)


def trim(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Without the padding that no row needs; mask None where none is left."""
    mask = mask.bool()
    length = int(mask.any(0).nonzero().max()) + 1 if mask.any() else 1
    embeds, mask = embeds[:, :length], mask[:, :length]
    return embeds, None if mask.all() else mask


def text_arguments(core, embeds: Tensor, mask: Tensor | None, patches: int) -> dict:
    """What diffusers up to 0.36 must be told besides the mask, which it takes and does not use."""
    if "max_txt_seq_len" in inspect.signature(core.pos_embed.forward).parameters:
        return {}
    arguments = dict(txt_seq_lens=[embeds.shape[1]] * len(embeds))
    if mask is not None:
        if core.gradient_checkpointing and torch.is_grad_enabled():
            raise ValueError(
                "this diffusers ignores the mask of padded text under gradient checkpointing; "
                "expected prompts of one length, checkpointing off, or diffusers above 0.36 (pip install -U diffusers)"
            )
        joint = torch.cat([mask, mask.new_ones(len(mask), patches)], dim=1)
        arguments["attention_kwargs"] = dict(attention_mask=joint[:, None, None])
    return arguments


def pack(x: Tensor, p: int) -> tuple[Tensor, tuple[int, int]]:
    """(B, C, H, W) to patches (B, H/p W/p, C p p), and the grid (H/p, W/p)."""
    b, c, h, w = x.shape
    grid = h // p, w // p
    return x.reshape(b, c, grid[0], p, grid[1], p).permute(0, 2, 4, 1, 3, 5).reshape(b, grid[0] * grid[1], -1), grid


def unpack(patches: Tensor, grid: tuple[int, int], p: int) -> Tensor:
    """The inverse of pack."""
    x = patches.reshape(len(patches), *grid, -1, p, p).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(len(patches), -1, grid[0] * p, grid[1] * p)


class QwenImage(Family):
    name = base_model = "qwen-image"
    repository = "Qwen/Qwen-Image"
    second_embedder = SECOND_EMBEDDERS["qwen-image"]
    layout = layouts.QWEN_IMAGE
    transformer_class, pipeline_class, vae_class = "QwenImageTransformer2DModel", "QwenImagePipeline", "AutoencoderKLQwenImage"
    presets = {"attention": r"transformer_blocks\..*\.attn\..*", "attention+mlp": r"transformer_blocks\..*(\.attn|_mlp)\..*"}
    velocity = staticmethod(velocity)

    def architecture(self, shapes: dict[str, tuple[int, ...]]) -> dict:
        (head,), (inner,) = shapes["transformer_blocks.0.attn.norm_q.weight"], shapes["img_in.bias"]
        return dict(
            patch_size=2,
            in_channels=shapes["img_in.weight"][1],
            out_channels=shapes["proj_out.bias"][0] // 4,
            num_layers=blocks(shapes, "transformer_blocks.{}.attn.to_q.weight"),
            attention_head_dim=head,
            num_attention_heads=inner // head,
            joint_attention_dim=shapes["txt_norm.weight"][0],
            axes_dims_rope=axes(head, head * 7 // 16),
        )

    def channels(self, model: nn.Module) -> int:
        return model.config.out_channels  # what goes in is packed

    def encode_prompt(self, pipeline, text: str) -> Prompt:
        embeds, _ = pipeline.encode_prompt(text, device=pipeline.device)  # one prompt has no padding
        return Prompt(text, embeds[0])

    def idle(self, model: nn.Module) -> list[str]:
        last = f"transformer_blocks.{len(model.transformer_blocks) - 1}."  # the text leaves it unheard
        return [last + name for name in ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")]


BACKBONE = QwenImage()
