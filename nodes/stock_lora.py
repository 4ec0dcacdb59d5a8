"""ComfyUI's own LoRA loaders know neither a second time embedder nor folded times: here they say so.

Every loader of core, and of other packs, ends in one of these functions; each is wrapped once.  Other models' LoRAs pass.
"""

import functools
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.sd
import torch
from torch import Tensor

from ..twinflow import lora_names
from ..twinflow.backbones import is_second_embedder
from ..twinflow.weights import WeightsError, load, read_header
from . import model_files
from .report import warn
from .supported import backbone_of
from .time_conditioning import attach, has_second_embedder, time_conditioning_of


def watch() -> None:
    for module, name, watched in (
        (comfy.sd, "load_lora_for_models", watched_loader),
        (comfy.sd, "load_bypass_lora_for_models", watched_loader),  # ComfyUI 0.3.64 has none
        (comfy.hooks, "create_hook_lora", watched_hook),
    ):
        stock = getattr(module, name, None)
        if stock is not None and not hasattr(stock, "watched_by_twinflow"):
            wrapped: Any = watched(stock)
            wrapped.watched_by_twinflow = True
            setattr(module, name, wrapped)


def watched_loader(stock: Callable) -> Callable:
    """Refuses an adapter whose embedder it would drop, and marks a model that should be asked at folded times."""

    @functools.wraps(stock)
    def load_lora(model, clip, tensors, strength_model, *args, **kwargs):
        if model is None or not strength_model or backbone_of(model.model) is None:
            return stock(model, clip, tensors, strength_model, *args, **kwargs)
        name, rule, embedder = described(tensors)
        two = has_second_embedder(model.model)
        if embedder:
            where = "with the TwinFlow LoRA Loader" if two else "together with its base in the TwinFlow Model Loader"
            raise ValueError(
                f"{name} is a TwinFlow adapter, and this loader would drop its second time embedder. Load it {where}"
            )
        if rule == "two" and not two:
            raise ValueError(
                f"{name} was trained with a second time embedder, which this model lacks. Load its checkpoint or adapter "
                "with the TwinFlow Model Loader first"
            )
        patched, *others = stock(model, clip, tensors, strength_model, *args, **kwargs)
        time = time_conditioning_of(patched.model, patched.model_options)
        if rule == "fold" and time.rule == "off":
            patched = attach(patched, replace(time, unfolded=name))
        return patched, *others

    return load_lora


def watched_hook(stock: Callable) -> Callable:
    """The same for a scheduled LoRA, which is made before any model is known."""

    @functools.wraps(stock)
    def create_hook_lora(lora, strength_model, *args, **kwargs):  # core names its arguments
        tensors = lora
        name, rule, embedder = described(tensors) if strength_model else ("", None, False)
        if embedder:
            raise ValueError(
                f"{name} is a TwinFlow adapter, whose second time embedder cannot be scheduled. Load it together with its base "
                "in the TwinFlow Model Loader"
            )
        if rule == "fold":
            warn(f"{name} was trained with folded times (t - r/2): set TwinFlow Model Patch to folded for its model")
        return stock(tensors, strength_model, *args, **kwargs)

    return create_hook_lora


def described(tensors: Mapping[str, Tensor]) -> tuple[str, str | None, bool]:
    """(the LoRA's name, its time conditioning, whether a second time embedder is among its tensors)."""
    file = file_of(tensors)
    rule = read_header(file).metadata.get("twinflow.time") if file else None
    embedder = any(is_second_embedder(key) and not lora_names.is_part(key) for key in tensors)
    return Path(file).name if file else "this LoRA", rule, embedder


def file_of(tensors: Mapping[str, Tensor]) -> str | None:
    """The file in models/loras that holds exactly these tensors: a loader is not told its name.

    The sizes of the files rule out nearly all of them, so hardly any is opened.
    """
    size = sum(tensor.nbytes for tensor in tensors.values())
    for place in model_files.places(model_files.LORAS):
        for path in sorted(Path(place).rglob("*")):
            try:
                if path.suffix in model_files.SAFE and body(path) == size and holds(str(path), tensors):
                    return str(path)
            except (OSError, WeightsError):
                continue
    return None


def body(path: Path) -> int:
    """The bytes of a file's tensors."""
    with path.open("rb") as file:
        start = file.read(8)
    return os.path.getsize(path) - 8 - struct.unpack("<Q", start)[0] if len(start) == 8 else -1


def holds(path: str, tensors: Mapping[str, Tensor]) -> bool:
    if read_header(path).tensors.keys() != tensors.keys():
        return False
    first = min(tensors)
    return torch.equal(load(path, [first])[first], tensors[first].cpu())
