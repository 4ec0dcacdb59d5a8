"""Qwen-Image: the velocity of diffusers' own QwenImageTransformer2DModel, unmodified.

It eats latents packed into patches and hears the noise time in [0, 1].  cond is (embeds (B, L, D), mask (B, L) bool).
"""

import inspect

import torch
from torch import Tensor, nn

from twinflow.prompts import Prompt
from twinflow.time_embedding import fold, stack

from .. import TrainerError


def velocity(model, x: Tensor, t: Tensor, r: Tensor, cond, *, time: str = "two", exact: bool = True) -> Tensor:
    """v (B, C, H, W) from t to r, both (B,), in the model's dtype.  H and W are multiples of the patch size.

    time: "two" needs the second embedder installed; "fold" gives t - r / 2 to any Qwen-Image, as a classic LoRA wants.
    exact: both times reach the embedder as float32; False lets the model round them to its own dtype, as the released
    code does (bfloat16 makes .999 a 1).  A folded time is always rounded: the plain model takes it no other way.
    """
    embeds, mask = trim(*cond)
    core = getattr(model, "module", model)  # what a distributed wrapper holds
    dtype = core.txt_norm.weight.dtype  # never quantised, never under a LoRA
    through = torch.bfloat16 if exact and dtype != torch.float64 else None  # autocast makes a float32 model round, too
    times = stack(t, r, through=through) if time == "two" else fold(t, r)
    patches, grid = pack(x.to(dtype), core.config.patch_size)
    out = model(
        hidden_states=patches,
        timestep=times,
        encoder_hidden_states=embeds.to(dtype),
        encoder_hidden_states_mask=mask,
        img_shapes=[[(1, *grid)]] * len(x),
        return_dict=False,
        **text_arguments(core, embeds, mask, patches.shape[1]),
    )[0]
    return unpack(out, grid, core.config.patch_size)


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


def collate(prompts: list[Prompt]) -> tuple[Tensor, Tensor]:
    """Prompts as cond: embeds (B, L, D) padded with zeros to the longest, mask (B, L)."""
    embeds = nn.utils.rnn.pad_sequence([p.embeds for p in prompts], batch_first=True)
    lengths = torch.tensor([len(p.embeds) for p in prompts])
    return embeds, torch.arange(embeds.shape[1]) < lengths[:, None]


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def lora_targets(model: nn.Module, targets: str) -> list[str]:
    """Linear layers by full name: "attention" (of both streams), "all", or names by their ends, comma-separated.

    Never one of the second embedder, which is trained whole.  Raises TrainerError for a name that fits nothing.
    """
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.startswith("time_text_embed_2.")]
    ends = ATTENTION if targets == "attention" else tuple(t.strip() for t in targets.split(",") if t.strip())
    if targets == "all":
        return linear
    for end in ends:
        if not any(name == end or name.endswith("." + end) for name in linear):
            raise TrainerError(
                f"targets: {end!r} names no linear layer; expected all, attention, or ends such as to_q,img_mlp.net.2"
            )
    if not ends:
        raise TrainerError("targets is empty; expected all, attention, or names such as to_q,to_k")
    return [name for name in linear if any(name == end or name.endswith("." + end) for end in ends)]
