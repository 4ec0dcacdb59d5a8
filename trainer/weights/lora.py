"""A LoRA on a backbone's model: put in by PEFT, written to an adapter file, and merged from one.

An adapter file has the LoRA under diffusers' names behind the backbone's prefix, its scale folded into B, and the second time
embedder, where there is one, under ComfyUI's names.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import peft
from torch import Tensor, nn

from twinflow import adapter

from ..backbones import Backbone
from ..config.sections import Adapter

PREFIX = "diffusion_model."  # of the second time embedder's names; ComfyUI's own
NAME = re.compile(r"(.*)\.lora_([AB])\.default\.weight")


def scale(adapter: Adapter) -> float:
    alpha = adapter.rank if adapter.alpha is None else adapter.alpha
    return alpha / (math.sqrt(adapter.rank) if adapter.rslora else adapter.rank)


def add(model: nn.Module, targets: list[str], adapter: Adapter) -> None:
    """PEFT's LoRA on exactly these modules, float32, B zero: the model's output stays what it was."""
    pattern = "|".join(re.escape(name) for name in targets)  # a list would also match by suffix
    settings = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=scale(adapter) * adapter.rank,  # pyright: ignore[reportArgumentType]  a fraction is right, too
        lora_dropout=adapter.dropout,
        target_modules=pattern,
    )
    peft.inject_adapter_in_model(settings, model)
    for name, p in model.named_parameters():
        if ".lora_" in name:
            p.data = p.data.float()


def to_file(backbone: Backbone, values: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The adapter file's tensors for these of the model; factor: the LoRA's scale."""
    out, second = {}, {}
    for name, value in values.items():
        if match := NAME.fullmatch(name):
            module, half = match.groups()
            out[f"{backbone.prefix}{module}.lora_{half}.weight"] = value * factor if half == "B" else value
        else:
            second[name] = value
    return out | {PREFIX + name: value for name, value in backbone.to_file(second).items()}


def merge(backbone: Backbone, model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> str:
    """Put an adapter file's tensors (as to_file writes them) into a plain model, in place; returns its time rule.

    The LoRA is merged into the weights.  Raises WeightsError for a tensor that fits nowhere.
    """
    names = {name: name.removeprefix(backbone.prefix).removeprefix(PREFIX) for name in tensors}
    return adapter.merge(backbone.core, model, backbone.from_file({names[name]: t for name, t in tensors.items()}), path)
