"""Going on with a run: what it was trained with so far, against what is asked for now."""

import hashlib
from typing import Any

import torch
from torch import nn

from twinflow.plain_json import printable

from .. import SEVERAL, TrainerError
from ..config.options import flag
from ..config.resolving import meaningless
from ..config.sections import OBJECTIVE
from ..config.settings import OPTIONS, Settings
from ..tensors import deferred
from ..weights import files, lora
from . import summary
from .summary import option

PLACES = {"out", "name"}  # a run that was moved is the same run
SAMPLED = 64  # numbers of a tensor that tell a model from others


def changes(now: Settings, then: Settings) -> dict[str, str]:
    """What is other than it was, by the option's name, in words.

    Raises TrainerError where that would make the trained weights mean something else.
    """
    derived = {"steps"} if now.training.epochs is not None else set()
    names = [n for n in different(now, then) if n not in PLACES | derived]
    if refused := [n for n in names if n in meaning(now)]:
        told = ", ".join(f"{flag(n)} was {shown(then, n)}, is {shown(now, n)}" for n in refused[:4])
        back = " ".join(given(then, n) for n in refused[:4])
        raise TrainerError(
            f"{now.folder} holds a run of another kind ({told}); expected --name NEW for a run beside it{start(now, then)}, or "
            f"{back} to go on with it",
            most=SEVERAL,
        )
    return {n: f"{flag(n)} {shown(now, n)} (was {shown(then, n)})" for n in names}


def start(now: Settings, then: Settings) -> str:
    """The option by which a new run starts from the weights of this one, where they fit and there are some."""
    folder, name = now.folder, then.run.name
    file = next((p for p in (files.final(folder, name), *reversed(files.by_step(folder, name).values())) if p.exists()), None)
    a, b, is_lora = now.adapter, then.adapter, then.mode == "lora"
    fits = now.model == then.model and now.mode in ("lora", "full")
    if is_lora and now.mode == "lora":
        fits = fits and a.rank >= b.rank and a.targets == b.targets and (a.time == b.time or b.time == "fold")
    elif not is_lora:
        fits = fits and (now.mode == "full" or a.time == "two")
    return f" (from its weights with {option('init', file)})" if fits and file else ""


def different(now: Settings, then: Settings) -> list[str]:
    """Names of the options that differ and are read; not where another spelling has the same effect."""
    a, b = now.flat(), then.flat()
    same: set[str] = {"preset", *meaningless(now.mode, now.model)}  # a preset is what it sets
    if lora.scale(now.adapter) == lora.scale(then.adapter):
        same |= {"alpha", "rslora"}
    if now.objective.guidance_ratio == then.objective.guidance_ratio:
        same |= {"guidance", "guidance_ratio"}
    return [name for name in a if a[name] != b[name] and name not in same]


def meaning(settings: Settings) -> set[str]:
    """Names of the options that decide what the trained weights are; all others may change on the way."""
    names = {"model", "mode"}
    if settings.mode == "base":
        return names
    names |= {n for n, o in OPTIONS.items() if o.section in ("adapter", "guidance")} - {"dropout"} | set(OBJECTIVE)
    names.add("time_shift")
    own_base = settings.base.path is None and "base" not in meaningless(settings.mode, settings.model)
    return names | ({n for n, o in OPTIONS.items() if o.section == "base"} | {"seed"} if own_base else set())


def given(settings: Settings, name: str) -> str:
    """The option as the command line takes it."""
    value = settings.flat()[name]
    return f"no {flag(name)}" if value in (None, "") else option(name, value)


def shown(settings: Settings, name: str) -> str:
    value: Any = settings.flat()[name]
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not given" if value in (None, "") else f"{value:g}" if isinstance(value, float) else printable(summary.shown(value))


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights, wherever their files lie and in whichever layout and float format."""
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        flat = deferred.value_of(p).flatten()
        some = flat[torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat))).long()]
        digest.update(repr((name, tuple(p.shape), some.bfloat16().tolist())).encode())
    return digest.hexdigest()[:16]
