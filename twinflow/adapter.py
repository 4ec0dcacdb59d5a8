"""LoRA files of any layout, and our adapters, under diffusers' names of the model that they are put on."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import lora_names
from .alphas import Alphas
from .backbones import Backbone, is_second_embedder
from .layouts import Place, exchanged, last_block
from .weights import WeightsError, load, read_header

PLAIN = {"lora_down.weight", "lora_up.weight"}  # and maybe an alpha


class Pair(NamedTuple):
    """A LoRA of one linear layer: up (out, rank) @ down (rank, in) is added to its weight.  float32; no scale besides."""

    down: Tensor
    up: Tensor


@dataclass
class Adapter:
    """modules, second: by diffusers' names, second the tensors of the second time embedder.  notes: on what is left out."""

    modules: dict[str, Pair] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """As merge takes them."""
        halves = ((name, half, t) for name, pair in self.modules.items() for half, t in zip("AB", pair))
        return {f"{name}.lora_{half}.weight": t for name, half, t in halves} | self.second


def read_adapter(
    path: Path,
    backbone: Backbone,
    model: nn.Module,
    idle: Iterable[str] = (),
    named: str = "",
    leave: Container[str] = (),
) -> Adapter:
    """The file's LoRA and second time embedder.  model: a plain one, maybe without weights.

    idle: modules of it whose output nothing uses.  named: what stands before the file in messages.  leave: names of tensors
    that are not read.  Raises WeightsError for what does not fit the model, and for anything that is not a plain LoRA.
    """
    refuse = lambda what: WeightsError(f"{named}{path}: {what}")
    header = read_header(path)
    tensors, metadata = load(path, [name for name in header.tensors if name not in leave]), header.metadata
    if wrong := [name for name, t in tensors.items() if not t.is_floating_point() or not t.float().isfinite().all()]:
        raise refuse(f"{wrong[0]!r} ({len(wrong)} such) holds {tensors[wrong[0]].dtype}, or numbers that are not finite")
    parts = {name: t for name, t in tensors.items() if lora_names.is_part(name)}
    second = {name: t for name, t in tensors.items() if name not in parts and is_second_embedder(name)}
    if others := [name for name in tensors if name not in parts and name not in second]:
        raise refuse(f"holds {others[0]!r} ({len(others)} such), which is no LoRA; expected a LoRA or an adapter alone")
    places = places_of(backbone, model)
    modules, names, dropped = lora_names.sort(parts, places)
    adapter, texts = Adapter(), [name for name, why in dropped.items() if why == "of a text encoder"]
    if unknown := [name for name in dropped if name not in texts]:
        what = "none of its LoRA is of" if not modules else f"{len(unknown)} of its parts are unknown to"
        raise refuse(f"{what} {backbone.name} ({unknown[0]!r}: {dropped[unknown[0]]}); expected a LoRA of this model")
    if not modules:
        raise refuse(f"holds a LoRA of a text encoder alone; expected one of {backbone.name}")
    alphas, layers, left = Alphas(metadata), dict(model.named_modules()), 0
    unused = tuple(f"{name}." for name in idle) or ("\0",)
    for module, groups in modules.items():
        (_, own), *again = lora_names.merged(groups)
        if again:
            raise refuse(f"holds {names[module]!r} twice; expected one LoRA")
        if other := (own.keys() - {"alpha"}) ^ PLAIN:
            found = ", ".join(f"{'no ' if part in PLAIN else ''}{part}" for part in sorted(other))
            raise refuse(f"{names[module]!r} is no plain LoRA ({found}); expected lora_A and lora_B, or lora_down and lora_up")
        down, up = (own[f"lora_{half}.weight"].float().flatten(1) for half in ("down", "up"))
        alpha = float(own["alpha"]) if "alpha" in own else alphas.of(module, len(down))
        up = up if alpha is None else up * (alpha / len(down))
        for name, place in places[module]:
            if f"{name}.".startswith(unused):
                left += 1
                continue
            layer, part = layers[name], up.narrow(0, *place.part.rows(len(up))) if place.part else up
            shape = tuple(layer.weight.shape) if isinstance(layer, nn.Linear) else "no linear layer"
            if up.shape[1] != len(down) or (len(part), down.shape[1]) != shape or name in adapter.modules:
                raise refuse(
                    f"{names[module]!r} is {len(part)}x{down.shape[1]}, rank {len(down)}; {name} of {backbone.name} is "
                    f"{'x'.join(map(str, shape)) if isinstance(shape, tuple) else shape}: it is of another model"
                )
            adapter.modules[name] = Pair(down, exchanged(part) if place.swapped else part.contiguous())
    adapter.second = {name: t.float() for name, t in backbone.layout.from_file(second).items()}
    if left:
        adapter.notes.append(f"{left} layers whose output nothing uses are left out")
    if texts:
        adapter.notes.append(f"{len(texts)} layers of a text encoder, which is not trained, are left out")
    return adapter


def places_of(backbone: Backbone, model: nn.Module) -> dict[str, list[tuple[str, Place]]]:
    """By every name that a module of the model may have in a file: the modules that it stands for, and which part of it."""
    names = [name for name, module in model.named_modules() if isinstance(getattr(module, "weight", None), Tensor)]
    last, layout = last_block(f"{name}." for name in names), backbone.layout
    native: dict[str, list[tuple[str, Place]]] = {}
    for name in names:
        if place := layout.place(name, last):
            native.setdefault(place.module, []).append((name, place))
    places = native | {name: [(name, Place(name))] for name in names}
    return places | {name.replace(".", "_"): place for name, place in places.items()}


@torch.no_grad()
def merge(backbone: Backbone, model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> str:
    """Put an adapter's tensors (under diffusers' names) into a plain model, in place; returns its time rule.

    A LoRA is added to the weights in float32 and rounded once.  Raises WeightsError for a tensor that fits nowhere.
    """
    second = {n: t for n, t in tensors.items() if n.startswith(f"{backbone.time.name}.")}
    if second and not backbone.time.installed(model):
        backbone.time.install(model)
    state, halves = dict(model.named_parameters()), [n for n in tensors if n.endswith(".lora_A.weight")]
    for name, value in second.items():
        if name not in state or state[name].shape != value.shape:
            raise WeightsError(f"{path}: {name!r} {tuple(value.shape)} does not fit {backbone.name}")
    for name in halves:
        module = name.removesuffix(".lora_A.weight")
        weight, up = state.get(module + ".weight"), tensors.get(module + ".lora_B.weight")
        if weight is None or up is None or weight.shape != (len(up), tensors[name].shape[1]):
            raise WeightsError(f"{path}: the LoRA of {module!r} does not fit {backbone.name}: it is of another model")
    for name, value in second.items():
        state[name].copy_(value)
    for name in halves:
        module = name.removesuffix(".lora_A.weight")
        weight, wide = state[module + ".weight"], torch.float32
        down, up = (tensors[f"{module}.lora_{half}.weight"].to(weight.device, wide) for half in "AB")
        weight.copy_(weight.to(wide) + up @ down)
    return "two" if second else "fold"
