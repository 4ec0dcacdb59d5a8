"""Names in LoRA files of every layout that is met in the wild: which module of the model a tensor belongs to, and which part.

Prefixes are stripped until what is left begins with a module that the model has, under diffusers' names or ComfyUI's, with
dots or (kohya) underscores between their parts.
"""

import re
from collections.abc import Container, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .layouts import PREFIXES

FILE_PREFIXES = (
    *("base_model.model.", *PREFIXES, "unet.", "dit.", "pipe.", "model.", "lora_unet__", "lora_unet_", "lora_transformer_"),
    *("lora_dit_", "lycoris_", "transformer_", "diffusion_model_", "lora_"),
)
TEXT_ENCODER = re.compile(r"^(lora_te|lora_te\d|text_encoder|text_encoders|te\d?)[._]|text_encoder")

# What stands behind the module's name.  The name of a PEFT adapter may stand in the middle.
NAMED = r"(?:\.(?!weight$|bias$)(?P<adapter>[\w-]+))?"
PARTS = tuple(
    (re.compile(pattern), part)
    for pattern, part in (
        (rf"(?:lora_A{NAMED}|lora_down|lora\.down|lora_linear_layer\.down)(?:\.weight)?", "lora_down.weight"),
        (rf"(?:lora_B{NAMED}|lora_up|lora\.up|lora_linear_layer\.up)(?:\.weight)?", "lora_up.weight"),
        (rf"(?:lora_B{NAMED}|lora_up)\.bias", "lora_bias"),
        (rf"lora_magnitude_vector{NAMED}(?:\.weight)?", "magnitude"),
        (r"lora_mid\.weight", "lora_mid.weight"),
        (r"alpha|dora_scale|diff|diff_b|w_norm|b_norm|set_weight|reshape_weight|oft_blocks|rescale|[ab][12]\.weight", ""),
        (r"lokr_(?:w[12](?:_[ab])?|t2)|hada_(?:w[12]_[ab]|t[12])", ""),
    )
)
MARK = re.compile(
    r"(\.(lora_|lora\.|lokr_|hada_|oft_|boft_|ia3_|vera_|lora$|[ab][12]\.weight$"
    r"|(alpha|diff|diff_b|dora_scale|w_norm|b_norm|set_weight|reshape_weight|rescale)$)|_lora\.(up|down)\.)"
)
Groups = dict[tuple[str, str], dict[str, Tensor]]  # (prefix, adapter) -> parts by name


class Sorted(NamedTuple):
    """modules: the parts of each module, by prefix and adapter.  names: of modules as the file has them.  dropped: why not."""

    modules: dict[str, Groups]
    names: dict[str, str]
    dropped: dict[str, str]


def sort(tensors: Mapping[str, Tensor], known: Container[str]) -> Sorted:
    """The tensors of a LoRA file by the module that they belong to, of those that the model has."""
    out = Sorted({}, {}, {})
    for key, tensor in tensors.items():
        name = module_name(key)
        found = split(re.sub(r"_lora\.(up|down)\.weight$", r".lora_\1.weight", key), known)
        if found is None:
            out.dropped[name] = "of a text encoder" if TEXT_ENCODER.search(key) else "the model has no such module"
            continue
        module, end, prefix = found
        part = part_of(end)
        if part is None:
            out.dropped[f"{name} {end}"] = f"a part ({end}) that is not known"
            continue
        out.names.setdefault(module, name)
        out.modules.setdefault(module, {}).setdefault((prefix, part[1]), {})[part[0]] = tensor
    return out


def split(key: str, known: Container[str]) -> tuple[str, str, str] | None:
    """(module, rest, prefix) of a LoRA key; None where the model has no such module."""
    whole = key = key.replace("_orig_mod.", "").replace("_orig_mod_", "")
    while True:
        module, end = key, ""
        while module:
            if module in known and end:
                return module, end, whole.removesuffix(key)
            module, _, tail = module.rpartition(".")
            end = f"{tail}.{end}" if end else tail
        prefix = next((p for p in FILE_PREFIXES if key.startswith(p)), None)
        if prefix is None:
            return None
        key = key[len(prefix) :]


def part_of(end: str) -> tuple[str, str] | None:
    """(the part's name, the adapter's) of what stands behind a module's name; None for a part that nothing reads."""
    for pattern, part in PARTS:
        if match := pattern.fullmatch(end):
            return part or end, match.groupdict().get("adapter") or ""
    return None


def is_part(key: str) -> bool:
    """Whether the key belongs to a LoRA, not to a weight of its own."""
    return MARK.search(key) is not None


def module_name(key: str) -> str:
    """The module's part of a LoRA key; any other key as it is."""
    mark = MARK.search(key)
    return key[: mark.start()] if mark else key


def merged(groups: Groups) -> list[tuple[tuple[str, str], dict[str, Tensor]]]:
    """The groups of a module, those without an adapter's name (alpha, dora_scale) joined to the first that has one, and
    those that say the same as the first left out.
    """
    out: list[tuple[tuple[str, str], dict[str, Tensor]]] = []
    for (prefix, adapter), parts in sorted(groups.items(), key=lambda item: item[0][1] not in ("", "default")):
        match = next((p for (other, _), p in out if other == prefix and not p.keys() & parts.keys()), None)
        if match is not None:
            match.update(parts)
        elif not out or not _same(out[0][1], parts):
            out.append(((prefix, adapter), dict(parts)))
    return out


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[part].shape == b[part].shape and torch.equal(a[part], b[part]) for part in a)
