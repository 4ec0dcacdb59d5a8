"""Whether a training run fits, before anything is downloaded: memory by item, the cards it fits, and what would help.

python -m trainer.lora --model qwen-image --quantize nf4 --plan
"""

from dataclasses import fields, replace
from itertools import product
from math import ceil

import torch

from .. import TrainerError
from ..backbones.sources import is_hub_id
from ..weights.block_swap import blocks
from .memory import GIB, Setup, plan, skeleton
from .sizes import SIZES, Size
from .sizes import size as size_of

CARDS = (12, 16, 24, 48, 80)  # GiB


def changes(setup: Setup, blocks: int = 0) -> list[tuple[str, Setup]]:
    """Setups that need less, the least painful first, each with the flags that make it of this one.  blocks: to be swapped."""
    full, sizes = setup.mode == "full", [setup.resolution, *(r for r in (768, 512) if r < setup.resolution)]
    more = sorted({blocks * k // 8 for k in (2, 4, 6)} - {0}) if not full else []
    swaps = [(4 + i, f"--block-swap {n}", n) for i, n in enumerate(more) if n > setup.block_swap]
    choices = dict(  # pain, flag, values
        checkpointing=[(0, "", setup.checkpointing), (1, "--checkpointing", True)],
        optimizer=[(0, "", setup.optimizer), (2, "--optimizer adamw8bit", "adamw8bit")],
        block_swap=[(0, "", setup.block_swap)] + swaps,
        quantize=[(0, "", setup.quantize)] + [(p, f"--quantize {q}", q) for p, q in ((4, "int8"), (7, "nf4")) if not full],
        batch=[(0, "", setup.batch), (3, f"--batch 1 --accumulation {setup.batch * setup.accumulation}", 1)],
        averages=[(0, "", setup.averages), (9, "--ema 0 --weights-ema 0", 0)],
        gpus=[(0, "", setup.gpus)]
        + [(12 + n, f"accelerate's FSDP over {n} cards", n) for n in (2, 4, 8) if full and n > setup.gpus],
        resolution=[(5 * i, f"--resolution {r}" if i else "", r) for i, r in enumerate(sizes)],
    )
    found = []
    for combination in product(*choices.values()):
        values = {name: value for name, (_, _, value) in zip(choices, combination)}
        if values["block_swap"] and (values["quantize"] == "nf4" or not values["checkpointing"]):
            continue
        new = replace(setup, **values)
        found.append((sum(pain for pain, _, _ in combination), " ".join(flag for _, flag, _ in combination if flag), new))
    return [(flags, new) for _, flags, new in sorted(found, key=lambda f: f[0])]


def advice(size: Size, setup: Setup, card: int) -> str | None:
    """The flags with which the setup fits a card of so many GiB: "" where it does as it is, None where none helps."""
    for flags, new in changes(setup, len(blocks(skeleton(size)))):
        if plan(size, new).total <= card * GIB:
            return flags
    return None


def table(name: str, size: Size, setup: Setup) -> str:
    """The plan as text."""
    it = plan(size, setup)
    what = f"LoRA rank {setup.rank} on {setup.targets}, time {setup.time}" if setup.mode == "lora" else "all weights"
    many = f", {setup.gpus} cards" if setup.gpus > 1 else ""
    lines = [
        f"{name}: {what}; {setup.resolution} px, batch {setup.batch}{many}",
        f"trainable parameters {it.trainable:,} ({100 * it.trainable / it.parameters:.2f} % of {it.parameters:,})",
        "",
        *(f"  {item:28s} {value / GIB:8.2f} GiB" for item, value in it.items.items()),
        f"  {'on each card' if setup.gpus > 1 else 'together':28s} {it.total / GIB:8.2f} GiB",
        "",
        f"on disk, the cache: {ceil(it.cache * 1000 / 2**20):,} MiB for 1000 pictures with captions of {size.tokens} tokens",
        f"before training: the text encoders, {size.text:.1f} GiB in bf16, alone in memory and then freed",
        "",
    ]
    for card in CARDS:
        flags = advice(size, setup, card)
        verdict = "fits" if flags == "" else "does not fit" if flags is None else f"would fit with {flags}"
        lines.append(f"  {card:3d} GB  {verdict}")
    return "\n".join(lines)


def setup_of(config, gpus: int = 1) -> Setup:
    """What of a run's settings (trainer.config.Config) its memory depends on.  gpus: that FSDP shards over."""
    own = {f.name: getattr(config, f.name) for f in fields(Setup) if f.name in type(config).model_fields}
    averages = bool(config.ema) + bool(config.weights_ema)
    frozen_copy = config.mode == "full" and config.guide == "base"
    return Setup(**own | dict(averages=averages, frozen_copy=frozen_copy, gpus=gpus))


def check_machine(config, device: torch.device) -> None:
    """Raises TrainerError for a published model where there is no GPU.  (What the user has made small is welcome.)"""
    if device.type != "cpu" or config.model not in SIZES or (config.source and not is_hub_id(config.source)):
        return
    it = plan(size_of(config.model), setup_of(config))
    largest = sorted(it.items.items(), key=lambda item: -item[1])[:3]
    raise TrainerError(
        f"{config.model} needs a GPU, and PyTorch sees none here: as it is set, this run takes {it.total / GIB:.0f} GiB on the "
        f"card ({', '.join(f'{name} {value / GIB:.1f}' for name, value in largest)}, ...; --plan says which cards would do); "
        "to try the trainer on this machine: --model digits"
    )
