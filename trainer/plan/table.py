"""Whether a training run fits, before anything is downloaded: memory by item, the cards it fits, and what would help.

python -m trainer.lora --model qwen-image --quantize nf4 --plan
"""

from itertools import product
from math import ceil
from typing import Any

import torch

from .. import TrainerError
from ..backbones import Backbone, backbone
from ..backbones.sources import is_hub_id
from ..config import Settings
from ..weights.block_swap import blocks_of
from .memory import GIB, image_size, plan, skeleton

CARDS = (12, 16, 24, 48, 80)  # GiB
Change = tuple[int, str, dict[str, Any]]  # how painful, the flags that make it, the settings by section and name


def changes(settings: Settings, cards: int = 1, blocks: int = 0) -> list[tuple[str, Settings, int]]:
    """Settings and numbers of cards that need less, the least painful first, each with the flags that make it of these.

    blocks: of the model, to be swapped.
    """
    training, memory, full = settings.training, settings.memory, settings.mode == "full"
    sizes = [r for r in (768, 512) if r < settings.data.resolution and not settings.data.dataset]  # whose file has its own
    more = sorted({blocks * k // 8 for k in (2, 4, 6)} - {0}) if not full else []
    as_is: Change = (0, "", {})
    rows = training.batch * training.accumulation
    choices: list[list[Change]] = [
        [as_is, (1, "--checkpointing", {"memory.checkpointing": True})],
        [as_is, (2, "--optimizer adamw8bit", {"training.optimizer": "adamw8bit"})],
        [as_is, *((4 + i, f"--block-swap {n}", {"memory.block_swap": n}) for i, n in enumerate(more) if n > memory.block_swap)],
        [as_is, *((p, f"--quantize {q}", {"memory.quantize": q}) for p, q in ((4, "int8"), (7, "nf4")) if not full)],
        [as_is, (3, f"--batch 1 --accumulation {rows}", {"training.batch": 1, "training.accumulation": rows})],
        [as_is, (9, "--ema 0 --weights-ema 0", {"training.ema": 0.0, "training.weights_ema": 0.0})],
        [as_is, *((12 + n, f"accelerate's FSDP over {n} cards", {"cards": n}) for n in (2, 4, 8) if full and n > cards)],
        [as_is, *((5 * i, f"--resolution {r}", {"data.resolution": r}) for i, r in enumerate(sizes, 1))],
    ]
    found = []
    for combination in product(*choices):
        values = {name: value for _, _, own in combination for name, value in own.items()}
        many = values.pop("cards", cards)
        new = changed(settings, values)
        if new.memory.block_swap and (new.memory.quantize == "nf4" or not new.memory.checkpointing):
            continue
        pain, flags = sum(p for p, _, _ in combination), " ".join(flag for _, flag, _ in combination if flag)
        found.append((pain, flags, new, many))
    return [(flags, new, many) for _, flags, new, many in sorted(found, key=lambda f: f[0])]


def changed(settings: Settings, values: dict[str, Any]) -> Settings:
    """The settings with other values, by "section.name"; what does not go together is left out by changes."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, {})[field] = value
    return settings.model_copy(update={s: getattr(settings, s).model_copy(update=own) for s, own in sections.items()})


def advice(known: Backbone, settings: Settings, card: int, cards: int = 1) -> str | None:
    """The flags with which the run fits a card of so many GiB: "" where it does as it is, None where none helps."""
    for flags, new, many in changes(settings, cards, len(blocks_of(skeleton(known)))):
        if plan(known, new, many).total <= card * GIB:
            return flags
    return None


def plan_text(settings: Settings, cards: int = 1) -> str:
    """The plan for a printout; cards: that FSDP shards over.  Raises TrainerError."""
    known = backbone(settings.model)
    if cards < 1:
        raise TrainerError(f"--plan is {cards}; expected 1 card or more")
    it, adapter, pixels = plan(known, settings, cards), settings.adapter, image_size(known, settings)
    is_lora = settings.mode == "lora"
    what = f"LoRA rank {adapter.rank} on {adapter.targets}, time {adapter.time}" if is_lora else "all weights"
    many = f", {cards} cards" if cards > 1 else ""
    lines = [
        f"{settings.model}: {what}; {pixels} px, batch {settings.training.batch}{many}",
        f"trainable parameters {it.trainable:,} ({100 * it.trainable / it.parameters:.2f} % of {it.parameters:,})",
        "",
        *(f"  {item:28s} {value / GIB:8.2f} GiB" for item, value in it.items.items()),
        f"  {'on each card' if cards > 1 else 'together':28s} {it.total / GIB:8.2f} GiB",
        "",
    ]
    if it.text:
        tokens = known.size.tokens
        lines += [
            f"on disk, the cache: {ceil(it.cache * 1000 / 2**20):,} MiB for 1000 images with captions of {tokens} tokens",
            f"before training: the text encoders, {it.text:.1f} GiB in bf16, alone in memory and then freed",
            "",
        ]
    for card in CARDS:
        flags = advice(known, settings, card, cards)
        verdict = "fits" if flags == "" else "does not fit" if flags is None else f"would fit with {flags}"
        lines.append(f"  {card:3d} GB  {verdict}")
    return "\n".join(lines)


def check_machine(settings: Settings, device: torch.device) -> None:
    """Raises TrainerError for a published model where there is no GPU.  (What the user has made small is welcome.)"""
    known, source = backbone(settings.model), settings.data.source
    published = bool(known.core.models[settings.model])
    if device.type != "cpu" or not published or (source and not is_hub_id(source)):
        return
    it = plan(known, settings)
    largest = sorted(it.items.items(), key=lambda item: -item[1])[:3]
    shares = ", ".join(f"{name} {value / GIB:.1f}" for name, value in largest)
    raise TrainerError(
        f"{settings.model} needs a GPU, and PyTorch sees none here: as it is set, this run takes {it.total / GIB:.0f} GiB on "
        f"the card ({shares}, ...; --plan lists the cards that would do); to try the trainer on this machine: --model digits"
    )
