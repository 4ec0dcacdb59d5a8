"""Whether a run fits, before anything is downloaded: memory and disk by item, the cards it fits, and what would help.

python -m trainer.lora --model qwen-image --quantize nf4 --plan
"""

from itertools import product
from math import ceil
from typing import Any

from .. import TrainerError
from ..backbones import Backbone, backbone
from ..config.settings import Settings
from ..weights.block_swap import blocks_of
from . import disk
from .memory import GIB, Plan, image_size, plan, skeleton

CARDS = (12, 16, 24, 48, 80)  # GiB
ENCODING: list[dict[str, Any]] = [  # what makes encoding lighter, the least painful first
    {},
    dict(encoders_device="auto", encode_batch=1),
    dict(encoders_device="auto", encode_batch=1, vae_tiling=True),
    dict(encoders_device="auto", encode_batch=1, vae_tiling=True, vae_dtype="bf16"),
]
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


def advice(known: Backbone, settings: Settings, card: float, cards: int = 1) -> str | None:
    """The flags with which the run fits a card of so many GiB: "" where it does as it is, None where none helps."""
    lighter, extra = settings, ""
    for values in ENCODING:  # the last one, where none is enough
        new = {name: value for name, value in values.items() if getattr(settings.data, name) != value}
        extra = " ".join(f"--{n.replace('_', '-')}" + ("" if v is True else f" {v}") for n, v in new.items())
        lighter = changed(settings, {f"data.{name}": value for name, value in new.items()})
        if max(plan(known, lighter, cards).encoding.values(), default=0) <= card * GIB:
            break
    for flags, new, many in changes(lighter, cards, len(blocks_of(skeleton(known)))):
        if plan(known, new, many).peak <= card * GIB:
            return " ".join(filter(None, (flags, extra)))
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
    sum_up = "on each card" if cards > 1 else "together"
    lines = [
        f"{settings.model}: {what}; {pixels} px, batch {settings.training.batch}{many}",
        f"trainable parameters {it.trainable:,} ({100 * it.trainable / it.parameters:.2f} % of {it.parameters:,})",
        "",
        "training, on the card (where there is none, in host memory)",
        *gib(it.items | {sum_up: it.total}),
    ]
    if others := it.encoding | ({"a sample grid": it.grids} if it.grids else {}):
        lines += ["", "before that and between, one after the other, each with the reserve: encoding", *gib(others)]
    lines += ["", f"the whole run takes {it.peak / GIB:.1f} GiB of {'each' if cards > 1 else 'the'} card", ""]
    lines += [f"host memory{' of each process' if cards > 1 else ''}", *gib(it.host | {"together": it.host_peak}), ""]
    lines += ["on disk", *on_disk(known, settings, it), ""]
    for card in CARDS:
        flags = advice(known, settings, card, cards)
        verdict = "fits" if flags == "" else "does not fit" if flags is None else f"would fit with {flags}"
        lines.append(f"  {card:3d} GB  {verdict}")
    return "\n".join(lines)


def gib(values: dict[str, float]) -> list[str]:
    return [f"  {name:32s} {value / GIB:8.2f} GiB" for name, value in values.items()]


def on_disk(known: Backbone, settings: Settings, it: Plan) -> list[str]:
    lines = []
    if it.cache:
        each = f"1000 images with captions of {known.size.tokens} tokens"
        lines.append(f"  {'cache':32s} {ceil(it.cache * 1000 / 2**20):8,} MiB for {each}")
    for name, own in (("states to go on from", disk.states(known, settings)), ("weights files", disk.weights(known, settings))):
        lines.append(f"  {name:32s} {ceil(own.total / 2**20):8,} MiB: {own.most} of {ceil(own.each / 2**20):,} MiB")
    return lines
