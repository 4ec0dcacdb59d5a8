"""Quantised layers in ComfyUI: every file is brought to the one form that it reads today, with its own metadata, before it
meets another file.  A layer that cannot stay as it is gets dequantised."""

import json
from collections.abc import Callable, Mapping

import comfy.ops
import torch
from torch import Tensor

from ..twinflow import quantised
from ..twinflow.quantised import COMPANIONS, FP8, MARK, METADATA, OLD_MARK, PLAIN, Entries, Layer

__all__ = ["COMPANIONS", "MARK", "METADATA", "OLD_MARK", "Layer", "can_stay", "dequantised", "kept", "layers_of"]

ALGORITHMS = getattr(comfy.ops, "QUANT_ALGOS", {})  # none before ComfyUI 0.4


def layers_of(
    name: str, entries: Entries, metadata: Mapping[str, str], read: Callable[[list[str]], Mapping[str, Tensor]], bare
) -> dict[str, Layer]:
    """The quantised layers by module.  Raises WeightsError (see twinflow.quantised)."""
    foreign = quantised.foreign_format(entries, metadata)
    reader = "the TwinFlow nodes" if foreign else "this ComfyUI"
    return quantised.layers_of(name, entries, metadata, read, bare, {*ALGORITHMS, *PLAIN}, reader)


def can_stay(layer: Layer, entries: Entries) -> bool:
    """Whether ComfyUI's own layers take it as it is: a matrix, and one scale where it knows fp8 with one only."""
    if layer.kind not in ALGORITHMS:
        return False
    scale = layer.parts.get("weight_scale")
    one = layer.kind not in FP8.values() or (scale is not None and quantised.count(entries[scale][1]) == 1)
    return one and len(entries[f"{layer.module}.weight"][1]) == 2


def kept(layer: Layer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The layer's tensors in the form that ComfyUI reads.  tensors: of the file, by bare keys."""
    found = {f"{layer.module}.weight": tensors[f"{layer.module}.weight"]}
    for part, key in layer.parts.items():
        if part == MARK or (part == "input_scale" and tensors[key].numel() == 1 and float(tensors[key]) == 1):
            continue
        found[f"{layer.module}.{part}"] = tensors[key]
    mark = torch.tensor(list(json.dumps(layer.conf).encode()), dtype=torch.uint8)
    return found | {f"{layer.module}.{MARK}": mark}


def dequantised(layer: Layer, tensors: Mapping[str, Tensor], rows: int | None, dtype: torch.dtype) -> Tensor:
    """The weight that the layer stands for.  rows: how many it has, where the format pads them."""
    if quantised.plain(layer):
        return quantised.dequantised(layer, tensors).to(dtype)
    return quantised.smoothed(layer, tensors, _by_comfyui(layer, tensors)[:rows]).to(dtype)


def _by_comfyui(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """Read by ComfyUI's own quantised Linear, which knows the packing of every format that it has."""
    weight = tensors[f"{layer.module}.weight"]
    packed = 2 if layer.kind in ("nvfp4", "convrot_w4a4", "asym_w4a8_int8") else 1
    ops = comfy.ops.mixed_precision_ops({}, torch.float32)
    linear = ops.Linear(weight.shape[1] * packed, weight.shape[0], bias=False, device="cpu", dtype=torch.float32)
    own = {key[len(layer.module) + 1 :]: tensor for key, tensor in kept(layer, tensors).items()}
    linear.load_state_dict(own, strict=False)
    stored = linear.weight
    return (stored.dequantize() if hasattr(stored, "dequantize") else stored).detach().float()
