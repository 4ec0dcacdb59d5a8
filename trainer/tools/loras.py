"""LoRA files in the layouts of others, from ours: pairs (down, up) of diffusers' modules, alpha folded in."""

from collections.abc import Mapping

import torch
from torch import Tensor

from twinflow.layouts import Layout, Part, exchanged, last_block

from ..backbones import Backbone
from ..weights.lora_file import Pair


def ours(known: Backbone, modules: Mapping[str, Pair]) -> dict[str, Tensor]:
    """What trainer.lora writes and ComfyUI's stock loader takes whole."""
    return with_prefix(known.prefix, modules)


def diffusers(known: Backbone, modules: Mapping[str, Pair]) -> dict[str, Tensor]:
    """What load_lora_weights of a pipeline takes."""
    return with_prefix("transformer.", modules)


def with_prefix(prefix: str, modules: Mapping[str, Pair]) -> dict[str, Tensor]:
    return {f"{prefix}{name}.lora_{half}.weight": t for name, pair in modules.items() for half, t in zip("AB", pair)}


def kohya(known: Backbone, modules: Mapping[str, Pair]) -> dict[str, Tensor]:
    """lora_unet_ and underscores, ComfyUI's modules, an alpha that is the rank."""
    out: dict[str, Tensor] = {}
    for name, pair in to_native(known.core.layout, modules).items():
        start = "lora_unet_" + name.replace(".", "_")
        out |= {f"{start}.lora_down.weight": pair.down, f"{start}.lora_up.weight": pair.up}
        out[f"{start}.alpha"] = torch.tensor(float(len(pair.down)))
    return out


def to_native(layout: Layout, modules: Mapping[str, Pair]) -> dict[str, Pair]:
    """By ComfyUI's modules.  Parts that share A are one LoRA of the fused layer; else A is stacked, B block by block."""
    last, out = last_block(f"{name}." for name in modules), {}
    fused: dict[str, dict[Part, Pair]] = {}
    for name, pair in modules.items():
        place = layout.place(name, last)
        if place is None:
            out[name] = pair
        elif place.part is None:
            out[place.module] = Pair(pair.down, exchanged(pair.up)) if place.swapped else pair
        else:
            fused.setdefault(place.module, {})[place.part] = pair
    for module, parts in fused.items():
        many, rows = next(iter(parts)).of, len(next(iter(parts.values())).up)
        downs = [pair.down for pair in parts.values()]
        if len(parts) == many and all(torch.equal(downs[0], down) for down in downs[1:]):
            out[module] = Pair(downs[0], torch.cat([parts[part].up for part in sorted(parts)]))
            continue
        up, at = torch.zeros(many * rows, sum(map(len, downs))), 0
        for part, pair in parts.items():
            up[part.number * rows : (part.number + 1) * rows, at : at + len(pair.down)] = pair.up
            at += len(pair.down)
        out[module] = Pair(torch.cat(downs), up)
    return out


LAYOUTS = {"comfyui": ours, "diffusers": diffusers, "kohya": kohya}
