"""Names in files: which backbone a set of tensors is, and where diffusers' names lie in ComfyUI's own layout.

ComfyUI fuses q, k and v, renames most modules, and orders SD3.5's final scale and shift the other way round.  Whole
checkpoints go both ways, bit for bit; LoRAs use the same places.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "extended_weights.")
LINEAR = (".0.weight", ".0.bias", ".2.weight", ".2.bias")


class Place(NamedTuple):
    """Where a diffusers module lies: the native module, which third of it (fused q, k, v) or None, halves exchanged or not."""

    module: str
    third: int | None = None
    swapped: bool = False


@dataclass(frozen=True)
class Layout:
    """One row per backbone.  native, diffusers: keys that only this layout has.  second: the second embedder, native names.

    place(diffusers module, number of the last block): its Place, None where the name is the same in both layouts.
    """

    name: str
    native: str
    diffusers: str
    second: tuple[str, ...]
    place: Callable[[str, int], Place | None]

    def to_native(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under ComfyUI's names; those that bear them already stay as they are."""
        out, thirds = {}, {}
        last = last_block(tensors)
        for key, tensor in tensors.items():
            module, dot, end = key.rpartition(".")
            to = self.place(module, last) if dot else None
            if to is None:
                out["pos_embed" if key == "pos_embed.pos_embed" else key] = tensor
            elif to.third is None:
                out[f"{to.module}.{end}"] = exchanged(tensor) if to.swapped else tensor
            else:
                thirds.setdefault(f"{to.module}.{end}", {})[to.third] = tensor
        for key, parts in thirds.items():
            if len(parts) != 3:
                raise ValueError(f"{key} is made of q, k and v, but the file has {len(parts)} of the three: it is not complete")
            out[key] = torch.cat([parts[i] for i in range(3)])
        return out

    def to_diffusers(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of to_native: the tensors under diffusers' names; those that bear them already stay as they are."""
        out = {}
        behind = self.names_behind(key.rpartition(".")[0] for key in tensors)
        for key, tensor in tensors.items():
            module, _, end = key.rpartition(".")
            if module not in behind:
                out["pos_embed.pos_embed" if key == "pos_embed" else key] = tensor
                continue
            parts = tensor.chunk(3) if len(behind[module]) == 3 else (tensor,)
            for (name, place), part in zip(behind[module], parts, strict=True):
                out[f"{name}.{end}"] = exchanged(part) if place.swapped else part
        return out

    def names_behind(self, native: Iterable[str]) -> dict[str, list[tuple[str, Place]]]:
        """The diffusers modules (one, or q, k, v) that make up each of these native modules, where their names differ."""
        native = set(native)
        last, behind = last_block(native), {}
        for name in dict.fromkeys(diffusers_names(native, last)):
            place = self.place(name, last)
            if place is not None and place.module in native:
                behind.setdefault(place.module, []).append((name, place))
        return behind


def exchanged(tensor: Tensor) -> Tensor:
    """Scale and shift the other way round, along the output dimension."""
    return torch.cat(tensor.chunk(2)[::-1])


def last_block(names: Iterable[str]) -> int:
    blocks = [int(m[1]) for name in names if (m := re.match(r"(?:transformer|joint)_blocks\.(\d+)\.", name))]
    return max(blocks, default=-1)


def qwen_place(module: str, last: int) -> Place | None:
    return None  # ComfyUI's names are diffusers' names


Z_NAMES = (
    (".attention.to_out.0", ".attention.out"),
    (".attention.norm_q", ".attention.q_norm"),
    (".attention.norm_k", ".attention.k_norm"),
    ("all_x_embedder.2-1", "x_embedder"),
    ("all_final_layer.2-1", "final_layer"),
)


def z_place(module: str, last: int) -> Place | None:
    if m := re.fullmatch(r"(.*\.attention)\.to_([qkv])", module):
        return Place(f"{m[1]}.qkv", "qkv".index(m[2]))
    for theirs, ours in Z_NAMES:
        if theirs in module:
            return Place(module.replace(theirs, ours))
    return None


SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
SD3_OTHER = {
    "norm_out.linear": Place("final_layer.adaLN_modulation.1", swapped=True),
    "proj_out": Place("final_layer.linear"),
    "pos_embed.proj": Place("x_embedder.proj"),
    **{
        f"time_text_embed{n}.{theirs}_embedder.linear_{i}": Place(f"{ours}_embedder{n}.mlp.{2 * i - 2}")
        for n in ("", "_2")
        for theirs, ours in (("timestep", "t"), ("text", "y"))
        for i in (1, 2)
    },
}


def sd3_place(module: str, last: int) -> Place | None:
    m = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module)
    if not m:
        return SD3_OTHER.get(module)
    block, inner = f"joint_blocks.{m[1]}", m[2]
    if qkv := re.fullmatch(r"(attn2?)\.(?:to_([qkv])|add_([qkv])_proj)", inner):
        side = f"x_block.{qkv[1]}" if qkv[2] else "context_block.attn"
        return Place(f"{block}.{side}.qkv", "qkv".index(qkv[2] or qkv[3]))
    if inner not in SD3_BLOCK:
        return None
    return Place(f"{block}.{SD3_BLOCK[inner]}", swapped=inner == "norm1_context.linear" and int(m[1]) == last)


def diffusers_names(native: Iterable[str], last: int) -> list[str]:
    """The diffusers modules that could lie behind these native ones, q before k before v."""
    names = list(SD3_OTHER)
    for block in range(last + 1):
        inner = [*SD3_BLOCK, *(f"attn{n}.to_{c}" for n in ("", "2") for c in "qkv"), *(f"attn.add_{c}_proj" for c in "qkv")]
        names += [f"transformer_blocks.{block}.{name}" for name in inner]
    for module in native:
        if module.endswith(".attention.qkv"):
            names += [module.replace(".qkv", f".to_{c}") for c in "qkv"]
        names += [module.replace(ours, theirs) for theirs, ours in Z_NAMES[:3] if module.endswith(ours)]
        if module == "x_embedder" or module.startswith("final_layer."):
            head, _, rest = module.partition(".")
            names.append(f"all_{head}.2-1" + (f".{rest}" if rest else ""))
    return names


LAYOUTS = (
    Layout(
        "Qwen-Image", "txt_norm.weight", "txt_norm.weight",
        tuple(f"time_text_embed_2.timestep_embedder.linear_{i}.{end}" for i in (1, 2) for end in ("weight", "bias")),
        qwen_place,
    ),
    Layout(
        "Z-Image", "layers.0.attention.qkv.weight", "layers.0.attention.to_q.weight",
        tuple(f"t_embedder_2.mlp{end}" for end in LINEAR), z_place,
    ),
    Layout(
        "SD3.5", "joint_blocks.0.x_block.attn.qkv.weight", "pos_embed.proj.weight",
        tuple(f"{name}_embedder_2.mlp{end}" for name in "ty" for end in LINEAR), sd3_place,
    ),
)  # fmt: skip
QWEN_IMAGE, Z_IMAGE, SD3 = LAYOUTS


def find_layout(names) -> Layout | None:
    """The backbone whose tensors these are (bare names), None for any other."""
    return next((layout for layout in LAYOUTS if layout.native in names or layout.diffusers in names), None)


def bare(key: str) -> str:
    """The key without the prefixes that files wear."""
    while prefix := next((p for p in PREFIXES if key.startswith(p)), None):
        key = key[len(prefix) :]
    return key


def is_second_embedder(key: str) -> bool:
    return bool(re.match(r"(time_text_embed_2\.|[ty]_embedder_2\.)", bare(key)))
