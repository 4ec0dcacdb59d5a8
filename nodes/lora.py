"""LoRAs of every layout that is met in the wild, rewritten to the names that ComfyUI patches, and what became of them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import comfy.lora
import torch
from torch import Tensor

from ..twinflow import lora_names
from ..twinflow.alphas import Alphas
from ..twinflow.layouts import Layout, exchanged
from .dora import Dora

BIASES = {"diff_b": "weight", "b_norm": "weight", "lora_bias": "lora"}  # part -> what it is scaled as
WEIGHTS = ("diff", "w_norm", "set_weight")
NEEDS = {  # parts that say nothing without another
    "lora_up.weight": "lora_down.weight",
    "lora_down.weight": "lora_up.weight",
    "magnitude": "lora_up.weight",
    "lora_bias": "lora_up.weight",
}


class Target(NamedTuple):
    """A weight of the model, or rows of it (first, count), or one whose halves are exchanged."""

    key: str
    rows: tuple[int, int] | None = None
    swapped: bool = False

    def patch_key(self, key: str):
        """As ModelPatcher.add_patches takes it."""
        if self.rows is not None:
            return key, (0, *self.rows)
        return (key, None, exchanged) if self.swapped else key


@dataclass
class Applied:
    """Names of modules as the file has them, and why some of them, or parts of them, are not used."""

    applied: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    zero: int = 0

    @property
    def modules(self) -> int:
        return len(self.applied) + len({name.partition(" ")[0] for name in self.dropped} - set(self.applied))

    def verdict(self) -> str:
        return f"LoRA {len(self.applied)}/{self.modules} applied"

    def warnings(self, name: str) -> list[str]:
        found = []
        if self.dropped:
            reason, n = Counter(self.dropped.values()).most_common(1)[0]
            found.append(f"{name}: {len(self.dropped)} parts of the LoRA are not used ({n}: {reason}); the image will differ")
        if self.zero:
            found.append(f"{name}: {self.zero} of its {len(self.applied)} LoRA modules are all zeros and change nothing")
        return found

    def details(self) -> list[str]:
        head = f"LoRA modules applied: {len(self.applied)}, dropped: {self.modules - len(self.applied)}"
        return [head, *(f"  dropped: {name}: {reason}" for name, reason in self.dropped.items())]

    def why_nothing(self, title: str) -> str:
        """Of a LoRA that changes nothing."""
        if not self.dropped:
            return "holds no LoRA. Choose a LoRA file"
        reason, n = Counter(self.dropped.values()).most_common(1)[0]
        some = ", ".join(list(self.dropped)[:4])
        return (
            f"none of its {self.modules} LoRA modules fits this {title} model ({n}: {reason}). "
            f"Choose the LoRA that was made for this model, or the model that it was made for ({some})"
        )


def targets(model, layout: Layout | None) -> tuple[dict[str, Target], dict[str, tuple[int, ...]]]:
    """Every name that a module of this model may have in a file, with the weight that it patches; and all shapes by key."""
    start = "diffusion_model."
    shapes = {
        key: tuple(getattr(value, "tensor_shape", value.shape))
        for key, value in model.named_parameters()
        if key.startswith(start) and key.endswith((".weight", ".bias"))
    }
    native = {key[len(start) : -len(".weight")]: Target(key) for key in shapes if key.endswith(".weight")}
    found = dict(native)
    if layout is not None:
        for module, behind in layout.names_behind(native).items():
            key = native[module].key
            for name, place in behind:
                rows = place.part.rows(shapes[key][0]) if place.part else None
                found[name] = Target(key, rows, place.swapped)
    return found | {name.replace(".", "_"): target for name, target in found.items()}, shapes


def apply(patcher, tensors: dict[str, Tensor], strength: float, layout: Layout | None, metadata: Mapping[str, str]):
    """(a clone of the patcher with the LoRA, what was applied).  The patcher itself is not changed."""
    known, shapes = targets(patcher.model, layout)
    modules, names, dropped = lora_names.sort(tensors, known)
    result = Applied(dropped=dropped)
    alphas = Alphas(metadata)
    patches: list[tuple[object, object]] = []
    for module, groups in modules.items():
        name, found = names[module], known[module]
        groups = lora_names.merged(groups)
        for (_, adapter), _ in groups[1:]:
            again = f"another adapter ({adapter}) of the same module" if adapter else "the module again, under another prefix"
            result.dropped[f"{name} {adapter or 'twice'}"] = again
        own, reasons = patches_of(module, groups[0][1], found, shapes, alphas)
        result.dropped |= {f"{name} {part}".strip(): reason for part, reason in reasons.items()}
        if own:
            result.applied.append(name)
            result.zero += all(_is_zero(patch) for _, patch in own)
            patches += own
    patcher = patcher.clone()
    while patches:  # add_patches takes one patch a key at a time
        some = dict(reversed(patches))
        patcher.add_patches(some, strength)
        taken = {id(patch) for patch in some.values()}
        patches = [(key, patch) for key, patch in patches if id(patch) not in taken]
    return patcher, result


def patches_of(module: str, parts: dict[str, Tensor], target: Target, shapes: Mapping[str, tuple[int, ...]], alphas: Alphas):
    """([(key, patch)], {part: why it is not used}) of one module."""
    reasons = {part: f"{part} without {NEEDS[part]}" for part in parts if part in NEEDS and NEEDS[part] not in parts}
    parts = {part: tensor for part, tensor in parts.items() if part not in reasons}
    full = shapes[target.key]
    shape = full if target.rows is None else (target.rows[1], *full[1:])
    size = shape_of(parts)
    if "oft_blocks" in parts and (rows := int(torch.Size(parts["oft_blocks"].shape[-3:-1]).numel())) != shape[0]:
        return [], {"": f"turns {rows} rows, the model's weight has {shape[0]}"}
    if size is not None and "reshape_weight" not in parts and _flat(size) != _flat(shape):
        return [], {"": f"is {'x'.join(map(str, size))}, the model's weight {'x'.join(map(str, shape))}"}
    if "lora_up.weight" in parts and "alpha" not in parts:
        alpha = alphas.of(module, parts["lora_down.weight"].shape[0])
        parts |= {} if alpha is None else {"alpha": torch.tensor(alpha)}
    out: list[tuple[object, object]] = []
    weight_parts = {p: t for p, t in parts.items() if p not in (*BIASES, *WEIGHTS, "magnitude")}
    if target.swapped and "dora_scale" in weight_parts and weight_parts["dora_scale"].shape[0] == shape[0]:
        weight_parts["dora_scale"] = exchanged(weight_parts["dora_scale"])
    try:
        loaded = comfy.lora.load_lora({f"{module}.{p}": t for p, t in weight_parts.items()}, {module: target.key})
    except KeyError:  # a part that ComfyUI takes for granted is absent
        loaded = {}
    adapter = loaded.get(target.key)
    if adapter is not None:
        if "magnitude" in parts:
            magnitude = parts["magnitude"].flatten()
            adapter = Dora(set(), (adapter, exchanged(magnitude) if target.swapped else magnitude))
        out.append((target.patch_key(target.key), adapter))
    else:
        reasons |= {part: f"{part} alone is not a whole LoRA" for part in weight_parts}
    for part in WEIGHTS:
        if part in parts:
            kind = "set" if part == "set_weight" else "diff"
            out.append((target.patch_key(target.key), (kind, (parts[part],))))
    bias_key = f"{target.key[: -len('weight')]}bias"
    for part, scaled_as in BIASES.items():
        if part not in parts:
            continue
        rows = shape[0]
        if bias_key not in shapes:
            reasons[part] = "the model's module has no bias"
        elif parts[part].numel() != rows:
            reasons[part] = f"{part} has {parts[part].numel()} numbers, the model's bias {rows}"
        else:
            alpha = parts["alpha"].item() if "alpha" in parts else None
            scale = alpha / parts["lora_down.weight"].shape[0] if scaled_as == "lora" and alpha is not None else 1.0
            out.append((target.patch_key(bias_key), ("diff", (parts[part].flatten() * scale,))))
    return out, reasons


def shape_of(parts: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Of the change of the weight that the parts make; None where they do not tell."""
    for whole in WEIGHTS:
        if whole in parts:
            return tuple(parts[whole].shape)
    if "lora_up.weight" in parts:
        return parts["lora_up.weight"].shape[0], *parts["lora_down.weight"].shape[1:]
    if "hada_w1_a" in parts and "hada_w1_b" in parts and "hada_t1" not in parts:
        return parts["hada_w1_a"].shape[0], parts["hada_w1_b"].shape[1]
    sides = [_kronecker_side(parts, side) for side in ("lokr_w1", "lokr_w2")]
    if all(sides) and "lokr_t2" not in parts:
        return tuple(a * b for a, b in zip(*sides))
    return None


def _kronecker_side(parts: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    if name in parts:
        return tuple(parts[name].shape)
    if f"{name}_a" in parts and f"{name}_b" in parts:
        return parts[f"{name}_a"].shape[0], parts[f"{name}_b"].shape[1]
    return None


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(rows, columns), for a convolution is often written as a matrix."""
    return (shape[0], int(torch.Size(shape[1:]).numel()))


def _is_zero(patch) -> bool:
    """Whether the patch changes nothing, as that of a LoRA that was never trained."""
    if isinstance(patch, tuple):
        return patch[0] == "diff" and not patch[1][0].any()
    if type(patch).__name__ != "LoRAAdapter":
        return False
    up, down, _, _, dora_scale, *_ = patch.weights
    return dora_scale is None and not (up.any() and down.any())
