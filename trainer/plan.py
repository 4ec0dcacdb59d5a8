"""Whether a training run fits, before anything is downloaded: memory by item, the cards it fits, and what would help.

python -m trainer.plan --model qwen-image --quantize nf4
"""

import argparse
import sys
from dataclasses import fields, replace
from itertools import product
from math import ceil

from . import TrainerError
from .memory import GIB, Setup, plan
from .sizes import SIZES, Size
from .sizes import size as size_of

CARDS = (12, 16, 24, 48, 80)  # GiB


def changes(setup: Setup) -> list[tuple[str, Setup]]:
    """Setups that need less, the least painful first, each with the flags that make it of this one."""
    full, sizes = setup.mode == "full", [setup.resolution, *(r for r in (768, 512) if r < setup.resolution)]
    choices = dict(  # pain, flag, values
        checkpointing=[(0, "", setup.checkpointing), (1, "--checkpointing", True)],
        optimizer=[(0, "", setup.optimizer), (2, "--optimizer adamw8bit", "adamw8bit")],
        quantize=[(0, "", setup.quantize)] + [(p, f"--quantize {q}", q) for p, q in ((4, "int8"), (7, "nf4")) if not full],
        batch=[(0, "", setup.batch), (3, f"--batch 1 --accumulation {setup.batch * setup.accumulation}", 1)],
        averages=[(0, "", setup.averages), (9, "--ema 0 --weights-ema 0", 0)],
        gpus=[(0, "", setup.gpus)]
        + [(12 + n, f"accelerate's FSDP over {n} cards", n) for n in (2, 4, 8) if full and n > setup.gpus],
        resolution=[(5 * i, f"--resolution {r}" if i else "", r) for i, r in enumerate(sizes)],
    )
    found = []
    for combination in product(*choices.values()):
        new = replace(setup, **{name: value for name, (_, _, value) in zip(choices, combination)})
        found.append((sum(pain for pain, _, _ in combination), " ".join(flag for _, flag, _ in combination if flag), new))
    return [(flags, new) for _, flags, new in sorted(found, key=lambda f: f[0])]


def advice(size: Size, setup: Setup, card: int) -> str | None:
    """The flags with which the setup fits a card of so many GiB: "" where it does as it is, None where none helps."""
    for flags, new in changes(setup):
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


def main(argv: list[str] | None = None) -> int:
    """The command line: the fields of Setup as options."""
    options = argparse.ArgumentParser(prog="python -m trainer.plan", description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("--model", required=True, metavar="NAME", help=", ".join(SIZES))
    for field in fields(Setup):
        flag, kind = "--" + field.name.replace("_", "-"), type(field.default)
        if kind is bool:
            options.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            options.add_argument(flag, type=kind, default=field.default, metavar=kind.__name__, help=f"[{field.default}]")
    given = vars(options.parse_args(argv))
    name = given.pop("model")
    try:
        print(table(name, size_of(name), Setup(**given)))
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
