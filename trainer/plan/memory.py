"""What a training run keeps in memory, by item, from settings alone.

Weights, adapters, gradients, optimiser and averages are exact sums over the model on the meta device; activations are
counted on fake tensors (see activations); the reserve is a guess.  The method's extra forwards keep nothing.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import torch
from torch import nn

from .. import TrainerError
from ..config import DTYPES
from ..weights.block_swap import blocks
from . import activations
from .sizes import Size

GIB = 2**30
RESERVE = 1.5 * GIB  # the driver's context, the allocator's fragments, temporaries
BYTES = {"fp32": 4, "bf16": 2}
# bytes of a weight; nf4 with its scales, which are quantised, too
STORED = {"int8": 1.0, "fp8": 1.0, "fp8-cast": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
ROW = {"int8": 5.0, "fp8": 0.0, "fp8-cast": 0.0, "nf4": 0.0}  # and the scale (fp32) and zero point of an output row
KEPT_WHOLE = re.compile(r"time_|t_embedder|norm_out|proj_out|final_layer|(^|\.)(pos|patch)_embed")  # never quantised


class Trained(NamedTuple):
    """One trained tensor: how many numbers of how many bytes, and whether Muon trains it (see optimizers)."""

    numbers: int
    width: int
    matrix: bool


def eight_bit(t: Trained) -> int:
    """bitsandbytes keeps small tensors in fp32, and else a scale for every 256 numbers of either average."""
    return 8 * t.numbers if t.numbers < 4096 else 2 * (t.numbers + 4 * ceil(t.numbers / 256))


OPTIMIZERS: dict[str, Callable[[Trained], int]] = {  # bytes of state
    "adamw": lambda t: 2 * t.numbers * t.width,
    "adamw8bit": eight_bit,
    "muon": lambda t: t.numbers * t.width * (1 if t.matrix else 2),
}


@dataclass(frozen=True)
class Setup:
    """A run's settings, as far as memory goes; the names are those on the command line.

    quantize: the frozen base of a LoRA.  dtype: of all other frozen weights.  averages: copies that EMAs keep.  frozen_copy: of
    all weights, when the untrained base guides full training.  gpus: over which FSDP shards all but activations.
    """

    mode: str = "lora"
    rank: int = 32
    targets: str = "attention"
    time: str = "two"
    dtype: str = "bf16"
    quantize: str = "none"
    optimizer: str = "adamw"
    averages: int = 1
    frozen_copy: bool = False
    batch: int = 1
    accumulation: int = 1
    resolution: int = 1024
    checkpointing: bool = True
    block_swap: int = 0
    gpus: int = 1

    def __post_init__(self):
        allowed = dict(
            mode=("lora", "full"),
            time=("two", "fold"),
            dtype=tuple(BYTES),
            quantize=("none", *STORED),
            optimizer=tuple(OPTIMIZERS),
        )
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise TrainerError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(values)}")
        if self.mode == "full" and self.quantize != "none":
            raise TrainerError(f"quantize is {self.quantize!r}; expected none: full training changes the weights themselves")
        most = self.checkpointing and self.mode == "lora" and self.quantize != "nf4"
        if self.block_swap < 0 or (self.block_swap and not most):
            raise TrainerError(f"block_swap is {self.block_swap}; expected 0, or a LoRA with checkpointing, and not nf4")
        for name in ("rank", "batch", "accumulation", "resolution", "gpus"):
            if getattr(self, name) < 1:
                raise TrainerError(f"{name} is {getattr(self, name)}; expected 1 or more")


@dataclass(frozen=True)
class Plan:
    """items: bytes on each card by name.  cache: bytes on disk a row.  text: GiB of the text encoders."""

    setup: Setup
    parameters: int
    trainable: int
    items: dict[str, float]
    cache: int
    text: float

    @property
    def total(self) -> float:
        return sum(self.items.values())


@lru_cache(maxsize=32)
def skeleton(size: Size) -> nn.Module:
    """The transformer on the meta device, its second embedder installed."""
    with torch.device("meta"):
        model = size.transformer()
        size.backbone.second_embedder.install(model)
    return model


@lru_cache(maxsize=32)
def kept(size: Size, mode: str, targets: str, rank: int, dtype: str, resolution: int) -> activations.Kept:
    names = size.backbone.lora_targets(skeleton(size), targets) if mode == "lora" else ()
    return activations.count(size, resolution, DTYPES[dtype], names, rank if mode == "lora" else 0)


@lru_cache(maxsize=4096)
def plan(size: Size, setup: Setup) -> Plan:
    """What this setup needs for a model of this size."""
    if setup.resolution % size.backbone.pixels:
        raise TrainerError(f"resolution is {setup.resolution}; expected a multiple of {size.backbone.pixels} for this model")
    model, wide = skeleton(size), BYTES[setup.dtype]
    second = size.backbone.second_embedder.name + "."
    base = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(second))
    tensors = trained(size, setup.mode, setup.rank, setup.targets, setup.time)
    count, copy = sum(t.numbers for t in tensors), sum(t.numbers * t.width for t in tensors)
    if setup.mode == "lora":
        kind, away = setup.dtype if setup.quantize == "none" else setup.quantize, swapped(size, setup)
        frozen = weights(model, second, setup.dtype, setup.quantize) - sum(away)
        items = {f"weights ({kind})": frozen, "visiting blocks": 2 * max(away, default=0)}
        items["adapter"] = copy
    else:
        idle = sum(p.numel() for p in model.parameters()) - count
        items = {"weights (fp32)": copy + idle * wide}
    items |= {
        "buffers": sum(b.numel() for b in model.buffers()) * wide,
        "gradients": copy,
        f"optimiser ({setup.optimizer})": sum(map(OPTIMIZERS[setup.optimizer], tensors)),
        "averages (EMA)": copy * setup.averages,
        "frozen copy of the base": copy * setup.frozen_copy,
    }
    items = {name: value / setup.gpus for name, value in items.items()}
    saved = kept(size, setup.mode, setup.targets, setup.rank, setup.dtype, setup.resolution)
    items["activations"] = saved.bytes(setup.checkpointing) * setup.batch
    gathered = 4 if setup.mode == "full" else wide
    items["blocks gathered by FSDP"] = 2 * gathered * largest_block(model) * (setup.gpus > 1)  # one in use, one on its way
    items["reserve"] = RESERVE
    side = setup.resolution // size.factor
    text = size.tokens * max(getattr(model.config, n, 0) for n in ("joint_attention_dim", "cap_feat_dim", "caption_channels"))
    cache = 2 * (size.channels * side**2 * (1 + size.references) + text)
    items = {name: value for name, value in items.items() if value}
    return Plan(setup, base, count, items, cache, size.text)


@lru_cache(maxsize=64)
def trained(size: Size, mode: str, rank: int, targets: str, time: str) -> list[Trained]:
    """Everything that the optimiser sees, always in fp32."""
    found = []
    model, second = skeleton(size), size.backbone.second_embedder.name + "."
    lists = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, nn.ModuleList))
    idle = tuple(f"{name}." for name in size.backbone.idle(model))
    for name, p in model.named_parameters():
        hears_both = name.startswith(second) and (mode == "full" or time == "two")
        if hears_both or (mode == "full" and not name.startswith(idle)):
            found.append(Trained(p.numel(), 4, p.ndim == 2 and name.startswith(lists)))
    for name in size.backbone.lora_targets(model, targets) if mode == "lora" else ():
        layer = model.get_submodule(name)
        found += [Trained(rank * n, 4, name.startswith(lists)) for n in (layer.in_features, layer.out_features)]
    return found


def largest_block(model: nn.Module) -> int:
    """Parameters of the largest of the model's repeated blocks."""
    return max(sum(p.numel() for p in block.parameters()) for block in blocks(model).values())


def quantised(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers whose weight a quantised base stores in less."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not KEPT_WHOLE.search(name):
            yield name, module


@lru_cache(maxsize=4096)
def weights(model: nn.Module, second: str, dtype: str, quantize: str) -> float:
    """Bytes of the frozen base, or of a part of it."""
    total = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(second)) * BYTES[dtype]
    if quantize != "none":
        for _, layer in quantised(model):
            total += layer.weight.numel() * (STORED[quantize] - BYTES[dtype])
            total += layer.out_features * ROW[quantize]
    return total


def swapped(size: Size, setup: Setup) -> list[float]:
    """Bytes of each block that rests in host memory and visits the device when it is used."""
    second = size.backbone.second_embedder.name + "."
    chosen = list(blocks(skeleton(size)).values())[: setup.block_swap]
    return [weights(block, second, setup.dtype, setup.quantize) for block in chosen]
