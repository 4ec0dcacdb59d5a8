"""LoRAs of every layout that is met in the wild, rewritten to the names that ComfyUI patches, and what became of them."""

import re
from dataclasses import dataclass, field

import comfy.lora
from torch import Tensor

from ..twinflow.layouts import PREFIXES, Layout, exchanged

FILE_PREFIXES = ("base_model.model.", *PREFIXES, "unet.", "lora_unet_", "lora_transformer_", "lycoris_")
MARK = re.compile(r"\.(lora_|lora\.|lokr_|hada_|(alpha|diff|diff_b|dora_scale)$)")


@dataclass
class Applied:
    """Names of modules as the file has them."""

    applied: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def report(self) -> str:
        lines = [f"LoRA modules applied: {len(self.applied)}, dropped: {len(self.dropped)}"]
        return "\n".join(lines + [f"  dropped: {name}" for name in self.dropped])


def targets(model, layout: Layout | None) -> dict[str, object]:
    """Every name that a module of this model may have in a file, and the weight (or the slice of one) that it patches."""
    weights = {
        key: value.shape
        for key, value in model.state_dict().items()
        if key.startswith("diffusion_model.") and key.endswith(".weight")
    }
    native = {key[len("diffusion_model.") : -len(".weight")]: key for key in weights}
    found = dict(native)
    if layout is not None:
        for module, behind in layout.names_behind(native).items():
            key = native[module]
            for name, place in behind:
                if place.third is not None:
                    size = weights[key][0] // 3
                    found[name] = (key, (0, place.third * size, size))
                else:
                    found[name] = (key, None, exchanged) if place.swapped else key
    return found | {name.replace(".", "_"): target for name, target in found.items()}


def split(key: str, known: dict[str, object]) -> tuple[str, str] | None:
    """(module, rest) of a LoRA key, once its prefixes are off; None where the model has no such module."""
    while True:
        module, end = key, ""
        while module:
            if module in known and end:
                return module, end
            module, _, tail = module.rpartition(".")
            end = f"{tail}.{end}" if end else tail
        prefix = next((p for p in FILE_PREFIXES if key.startswith(p)), None)
        if prefix is None:
            return None
        key = key[len(prefix) :]


def is_part(key: str) -> bool:
    """Whether the key belongs to a LoRA, not to a weight of its own."""
    return module_name(key) != key


def module_name(key: str) -> str:
    """The module's part of a LoRA key; any other key as it is."""
    mark = MARK.search(key)
    return key[: mark.start()] if mark else key


def apply(patcher, tensors: dict[str, Tensor], strength: float, layout: Layout | None):
    """(a clone of the patcher with the LoRA, what was applied).  The patcher itself is not changed."""
    known = targets(patcher.model, layout)
    renamed, names, dropped = {}, {}, []
    for key, tensor in tensors.items():
        found = split(key, known)
        if found is None or found[1].endswith("lora_B.bias"):
            dropped.append(module_name(key) if found is None else key)
            continue
        module, end = found
        names.setdefault(module, module_name(key))
        renamed[f"{module}.{end.replace('.default', '')}"] = tensor
    loaded = comfy.lora.load_lora(renamed, {name: known[name] for name in names})
    patcher = patcher.clone()
    done = set(patcher.add_patches(loaded, strength))
    result = Applied()
    for module, name in names.items():
        (result.applied if known[module] in done else result.dropped).append(name)
    result.dropped += list(dict.fromkeys(dropped))
    return patcher, result
