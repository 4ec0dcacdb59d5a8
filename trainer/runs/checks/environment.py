"""Checks of what a run finds around it: the machine, its packages and libraries, and how it was launched."""

import os
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from ...backbones import attention, sources
from ...config.options import flag
from ...plan import memory
from ...plan.card import has_gpu
from ...plan.memory import GIB, skeleton
from ...training import optimizers
from ...weights import compiling, quantise
from .facts import Facts, Missing

NEEDED = {"accelerate": "1.10", "diffusers": "0.38", "peft": "0.19.1", "torch": "2.6", "transformers": "5"}
WITH_FSDP = dict(quantize="none", block_swap=0, optimizer="adamw", compile=False)  # which shards plain weights


def machine(facts: Facts, notify: Callable) -> Iterator[str]:
    """A published model where there is no GPU.  (What the user has made small is welcome.)"""
    settings, published = facts.settings, bool(facts.published.core.models[facts.settings.model])
    source = settings.data.source
    if has_gpu() or not published or (source and not sources.is_hub_id(source)):
        return
    it = memory.plan(facts.published, settings)
    largest = sorted(it.items.items(), key=lambda item: -item[1])[:3]
    shares = ", ".join(f"{name} {value / GIB:.1f}" for name, value in largest)
    yield Missing(
        f"{settings.model} needs a GPU, and PyTorch sees none here: as it is set, this run takes {it.total / GIB:.0f} GiB on "
        f"the card ({shares}, ...; --plan lists the cards that would do); to try the trainer on this machine: --model digits"
    )


def packages(facts: Facts, notify: Callable) -> Iterator[str]:
    settings = facts.settings
    for name, least in NEEDED.items():
        if numbers(found := version_of(name)) < numbers(least):
            yield f"{name} {found or 'is not installed'}; expected {least} or newer (pip install -U 'twinflow[trainer]')"
    tracker = settings.logging.tracker
    if tracker not in ("auto", "none") and not find_spec(tracker):
        yield f"--tracker {tracker}: is not installed; pip install {tracker}, or --tracker none"
    wanted = {}
    if settings.mode != "base":
        quantise.check_quantisation(settings.memory.quantize)
        optimizers.check_optimizer(settings.training.optimizer)
        wanted |= {quantise.PACKAGE.get(settings.memory.quantize): f"--quantize {settings.memory.quantize}"}
        if facts.reads("data"):
            kind = settings.data.encoders_dtype
            wanted |= {quantise.PACKAGE.get(kind): f"--encoders-dtype {kind}"}
        wanted |= {"torchao": "--optimizer adamw8bit"} if settings.training.optimizer == "adamw8bit" else {}
    for package, option in wanted.items():
        if package and (why := not_importable(package)):
            yield f"{option}: {package} cannot be imported ({why}); pip install -U {package}, or another {option.split()[0]}"
    for package, name in getattr(facts.kind, "packages", {}).items():
        if not find_spec(package):
            yield f"--model {settings.model}: needs {package}, which is not installed; pip install {name}"


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text.partition("+")[0])[:3]))


def not_importable(package: str) -> str:
    """Why; "" where it is."""
    try:
        import_module(package)
    except Exception as error:  # whatever a package does that was built for another machine
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


def launch(facts: Facts, notify: Callable) -> Iterator[str]:
    """What accelerate's FSDP cannot shard."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        now = facts.settings.flat()
        for name, value in WITH_FSDP.items():
            if now[name] != value:
                yield f"{flag(name)} is {now[name]}; expected {value} with FSDP, which shards plain weights"


def libraries(facts: Facts, notify: Callable) -> None:
    """Attention by another library, and torch.compile: tried on a small example."""
    own = facts.settings.memory
    if facts.settings.mode == "base":
        return
    device = torch.accelerator.current_accelerator() if has_gpu() else None
    if own.attention != attention.USUAL:
        masked, alone = getattr(facts.published, "masked", True), getattr(facts.published, "own_attention", False)
        attention.check(own.attention, skeleton(facts.known), masked, device or torch.device("cpu"), alone)
    if own.compile:
        compiling.check_compiler(device or torch.device("cpu"))
