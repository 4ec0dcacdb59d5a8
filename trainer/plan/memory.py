"""What a training run keeps in memory, by item, from its settings alone.

Weights, adapters, gradients, optimiser and averages are exact sums over the model on the meta device; activations are
counted on fake tensors (see activations); the reserve is a guess.  The method's extra forwards keep nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from .. import TrainerError
from ..backbones import Backbone
from ..config.settings import Settings
from ..data import datasets
from ..data.sources import Source
from ..weights.block_swap import blocks_of
from ..weights.quantise import layers
from . import activations, encoding

GIB = 2**30
PROGRAMS = 3 * GIB  # Python, PyTorch and the driver in host memory, roughly
WIDTHS = (  # of a token's embedding, in the classes
    "joint_attention_dim", "cap_feat_dim", "caption_channels", "text_hidden_dim", "context_in_dim",
)  # fmt: skip
RESERVE = 1.5 * GIB  # the driver's context, the allocator's fragments, temporaries
# bytes of a weight; nf4 with its scales, which are quantised, too
STORED = {"int8": 1.0, "fp8": 1.0, "fp8-cast": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
ROW = {"int8": 5.0, "fp8": 4.0, "fp8-cast": 0.0, "nf4": 0.0}  # of an output row: the scale (fp32), int8's zero point, too


class Trained(NamedTuple):
    """One trained tensor: how many numbers of how many bytes, and whether Muon trains it (see training.optimizers)."""

    numbers: int
    width: int
    matrix: bool


def eight_bit(t: Trained) -> int:
    """torchao keeps small tensors in fp32, and else a scale for every 256 numbers of either average, whose codes it shares."""
    if t.numbers < 4096 or t.numbers % 256:
        return 2 * t.numbers * t.width
    return 2 * (t.numbers + 4 * ceil(t.numbers / 256) + 4 * 256)


OPTIMIZERS: dict[str, Callable[[Trained], int]] = {  # bytes of state
    "adamw": lambda t: 2 * t.numbers * t.width,
    "adamw8bit": eight_bit,
    "muon": lambda t: t.numbers * t.width * (1 if t.matrix else 2),
}


@dataclass(frozen=True)
class Plan:
    """items: bytes on each card while it trains, by name.  encoding: bytes on the card before that, one after the other.
    grids: while a sample grid is made, 0 where none is.

    host: bytes of host memory, for each process.  cache: bytes on disk a row.
    """

    parameters: int
    trainable: int
    items: dict[str, float]
    encoding: dict[str, float]
    grids: float
    host: dict[str, float]
    cache: int

    @property
    def total(self) -> float:
        """Of training."""
        return sum(self.items.values())

    @property
    def peak(self) -> float:
        """The most that the whole run takes of the card."""
        return max(self.total, self.grids, *self.encoding.values())

    @property
    def host_peak(self) -> float:
        return sum(self.host.values())


@cache
def skeleton(backbone: Backbone) -> nn.Module:
    """The transformer on the meta device, with its second time embedder."""
    with torch.device("meta"):
        model = backbone.skeleton()
        backbone.core.time.install(model)
    return model


@cache
def kept(backbone: Backbone, mode: str, targets: str, rank: int, dtype: torch.dtype, resolution: int) -> activations.Kept:
    names = backbone.lora_targets(skeleton(backbone), targets) if mode == "lora" else ()
    return activations.count(backbone, resolution, dtype, names, rank if mode == "lora" else 0)


def plan(backbone: Backbone, settings: Settings, cards: int = 1) -> Plan:
    """What these settings need of each of so many cards, over which FSDP shards all but activations.  Raises TrainerError."""
    training, memory, adapter = settings.training, settings.memory, settings.adapter
    pixels = image_size(backbone, settings)
    model, wide = skeleton(backbone), settings.torch_dtype.itemsize
    second = backbone.core.time.name + "."
    base = numbers(model, second)
    tensors = trained(backbone, settings.mode, adapter.rank, adapter.targets, adapter.time)
    count, copy = sum(t.numbers for t in tensors), sum(t.numbers * t.width for t in tensors)
    items: dict[str, float]
    if settings.mode == "lora":
        kind = memory.dtype if memory.quantize == "none" else memory.quantize
        away = block_bytes(backbone, wide, memory.quantize)[: memory.block_swap]  # in host memory; they visit the device
        loaded = base * wide
        frozen = weights(model, second, wide, memory.quantize) - sum(away)
        items = {f"weights ({kind})": frozen, "visiting blocks": 2 * max(away, default=0), "adapter": copy}
    else:
        idle = numbers(model, "\0") - count
        away, loaded = [], copy + idle * wide
        items = {"weights (fp32)": copy + idle * wide}
    items |= {
        "buffers": buffers(model, second if settings.mode == "lora" and adapter.time == "fold" else "\0", wide),
        "gradients": copy,
        f"optimiser ({training.optimizer})": sum(map(OPTIMIZERS[training.optimizer], tensors)),
        "averages (EMA)": copy * (bool(training.ema) + bool(training.weights_ema)),
        "frozen copy of the base": copy * (settings.mode == "full" and settings.guidance.guide == "base"),
    }
    items = {name: value / cards for name, value in items.items()}
    saved = kept(backbone, settings.mode, adapter.targets, adapter.rank, settings.torch_dtype, pixels)
    items["activations"] = saved.bytes(memory.checkpointing) * training.batch
    gathered = 4 if settings.mode == "full" else wide
    items["blocks gathered by FSDP"] = 2 * gathered * largest_block(model) * (cards > 1)  # one in use, one on its way
    items["reserve"] = RESERVE
    resident = sum(items.values()) - items["activations"] - RESERVE
    before = {name: value + RESERVE for name, value in encoding.stages(backbone, settings, pixels).items()}
    decoding = encoding.decoding(backbone, pixels) if settings.logging.sample_every else 0
    state = copy + items.get("averages (EMA)", 0.0) + items[f"optimiser ({training.optimizer})"]
    sharded = cards > 1 and settings.mode == "full"  # and read a tensor at a time
    loading = passing(model, second) if sharded else max(loaded - sum(away), state)
    texts = encoding.text_in_host(backbone, settings)
    host = {"programs": PROGRAMS, "the text encoders, then the model, as they are loaded": max(texts, sum(away) + loading)}
    grids = (resident + decoding + RESERVE) * bool(decoding)
    real = lambda values: {name: value for name, value in values.items() if value}
    return Plan(base, count, real(items), before, grids, real(host), cache_row(backbone, pixels))


def cache_row(backbone: Backbone, pixels: int) -> int:
    """Bytes on disk of an image and a long caption."""
    size = backbone.size
    images = (1 + size.references) * size.channels * (pixels // backbone.factor) ** 2
    return 2 * (images + size.tokens * text_width(skeleton(backbone))) * size.has_encoders


def image_size(backbone: Backbone, settings: Settings) -> int:
    """The side of a square image that is trained, in pixels, of several the largest.  Raises TrainerError."""
    if "data" in backbone.unread:  # of its own size always
        return backbone.pixels
    own, sizes = settings.data, {settings.data.resolution}
    if own.dataset:
        found = datasets.read(Path(own.dataset).expanduser(), Source(resolutions=(own.resolution,)))
        sizes = {size for source in found for size in source.resolutions}
    if wrong := [size for size in sizes if size % backbone.pixels]:
        raise TrainerError(f"resolution is {wrong[0]}; expected a multiple of {backbone.pixels} for this model")
    return max(sizes)


def text_width(model: nn.Module) -> int:
    """Of a token's embedding; Krea 2's is of several layers of the text encoder."""
    config = vars(model).get("_internal_dict", {})
    return max(config.get(name) or 0 for name in WIDTHS) * config.get("num_text_layers", 1)


@cache
def trained(backbone: Backbone, mode: str, rank: int, targets: str, time: str) -> list[Trained]:
    """Everything that the optimiser sees, always in fp32."""
    found = []
    model, second = skeleton(backbone), backbone.core.time.name + "."
    lists = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, nn.ModuleList))
    idle = tuple(f"{name}." for name in backbone.idle(model))
    for name, p in model.named_parameters():
        is_second = name.startswith(second) and (mode == "full" or time == "two")
        if is_second or (mode == "full" and not name.startswith(idle)):
            found.append(Trained(p.numel(), 4, p.ndim == 2 and name.startswith(lists)))
    for name in backbone.lora_targets(model, targets) if mode == "lora" else ():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        found += [Trained(rank * n, 4, name.startswith(lists)) for n in (layer.in_features, layer.out_features)]
    return found


@cache
def numbers(model: nn.Module, second: str) -> int:
    """Parameters of the model without those whose names begin with `second`."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(second))


def buffers(model: nn.Module, second: str, wide: int) -> int:
    """Bytes, without those whose names begin with `second`; tables that a model computes itself keep their dtype."""
    saved, own = model.state_dict().keys(), dict(model.named_buffers())
    size = lambda name: own[name].numel() * (wide if name in saved else own[name].element_size())
    return sum(size(name) for name in own if not name.startswith(second))


@cache
def passing(model: nn.Module, second: str) -> int:
    """Bytes of host memory of a process while it reads a model of which its card keeps a part: the largest tensor as read,
    unpacked, scaled and rounded; and the time embedders, which are made whole."""
    times = sum(p.numel() for name, p in model.named_parameters() if name.startswith(second))
    return 12 * max(p.numel() for p in model.parameters()) + 2 * 4 * times


@cache
def largest_block(model: nn.Module) -> int:
    """Parameters of the largest of the model's repeated blocks."""
    return max(sum(p.numel() for p in block.parameters()) for block in blocks_of(model).values())


def saving(quantised: list[nn.Linear], wide: int, quantize: str) -> float:
    """Bytes by which these layers grow (less than 0) when they are quantised."""
    if quantize == "none":
        return 0.0
    return sum(m.weight.numel() * (STORED[quantize] - wide) + m.out_features * ROW[quantize] for m in quantised)


@cache
def weights(model: nn.Module, second: str, wide: int, quantize: str) -> float:
    """Bytes of the frozen base."""
    return numbers(model, second) * wide + saving(list(layers(model, quantize).values()), wide, quantize)


@cache
def block_bytes(backbone: Backbone, wide: int, quantize: str) -> list[float]:
    """Bytes of each block of the frozen base."""
    model = skeleton(backbone)
    chosen = layers(model, quantize)
    return [
        sum(p.numel() for p in block.parameters()) * wide
        + saving([layer for name, layer in chosen.items() if name.startswith(f"{block_name}.")], wide, quantize)
        for block_name, block in blocks_of(model).items()
    ]
