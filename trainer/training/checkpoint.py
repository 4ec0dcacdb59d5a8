"""Training state on disk: one safetensors file a checkpoint, atomic, enough to go on with bit-equal weights.

Every draw and the order of the data are functions of (seed, step), so no generator's state need be kept.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from twinflow.ema import EMA
from twinflow.weights import WeightsError, load, read_header, save

from .. import TrainerError
from ..weights import sharding
from . import disk, optimizers


@dataclass
class State:
    """What changes while training: the trained tensors by name, the optimisers, averages by name, and the step."""

    tensors: Mapping[str, Tensor]
    optimizers: list[torch.optim.Optimizer]
    averages: dict[str, EMA]
    step: int = 0
    skipped: int = 0
    seconds: float = 0.0


def contents(state: State) -> dict[str, Tensor]:
    """The state's own tensors by their names in the file."""
    tensors = {f"tensors.{name}": p for name, p in state.tensors.items()}
    for key, average in state.averages.items():
        tensors |= {f"averages.{key}.{name}": p for name, p in zip(state.tensors, average.shadow)}
    for k, optimizer in enumerate(state.optimizers):
        tensors |= {f"optimizer.{k}.{name}": p for name, p in optimizers.tensors(optimizer).items()}
    return tensors


def write(
    state: State, folder: Path, model: str, keep: int, *, main: bool = True, say: Callable[[str], object] = print
) -> Path | None:
    """Save as folder/step-00000100.safetensors, then delete all but the newest `keep`; None, and said, where it fails.

    model: names the weights that training started from ("": nothing does).
    To be called by every process, for sharded tensors are gathered; only the main one writes.
    """
    path = folder / f"step-{state.step:08d}.safetensors"
    tensors = sharding.gathered(contents(state), keep=main)
    if not main:
        return path
    about = dict(
        step=state.step,
        skipped=state.skipped,
        seconds=state.seconds,
        model=model,
        decays={key: average.decay for key, average in state.averages.items()},
    )
    metadata = {"twinflow.training": json.dumps(about)}
    if not disk.attempt(path, disk.size_of(tensors.values()), lambda: save(tensors, path, metadata), say):
        return None
    for old in list_all(folder)[keep:]:
        old.unlink()
    return path


def list_all(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted(folder.glob(f"step-{'[0-9]' * 8}.safetensors"), reverse=True)


def newest(folder: Path) -> Path | None:
    return next(iter(list_all(folder)), None)


@torch.no_grad()
def fill(state: State, saved: dict[str, Tensor], decays: dict[str, float]) -> list[str]:
    """Copy saved tensors into state; returns what starts afresh, for it is not in there.

    Raises KeyError or RuntimeError where the trained tensors do not fit.
    """
    afresh = []
    for name, p in state.tensors.items():
        if saved[f"tensors.{name}"].shape != p.shape:
            raise RuntimeError(f"{name} is {tuple(saved[f'tensors.{name}'].shape)}; expected {tuple(p.shape)}")
    if extra := [n for n in saved if n.startswith("tensors.") and n.removeprefix("tensors.") not in state.tensors]:
        raise KeyError(extra[0])
    for k, optimizer in enumerate(state.optimizers):
        prefix = f"optimizer.{k}."
        shapes = {name: t.shape for name, t in saved.items() if name.startswith(prefix)}
        slots = {int(name.split(".")[2]) for name in shapes}
        if fits := len(slots) == 0 or max(slots) < sum(len(group["params"]) for group in optimizer.param_groups):
            optimizers.prime(optimizer, slots)
            fits = shapes == {prefix + name: t.shape for name, t in optimizers.tensors(optimizer).items()}
        if not fits:
            optimizer.state.clear()
            afresh.append("the optimiser's memory")
    for name, own in contents(state).items():
        source = name
        if name.startswith("averages.") and name.split(".")[1] not in decays:  # of the weights as they are
            source = "tensors." + name.split(".", 2)[2]
        sharding.local(own).copy_(sharding.local(sharding.share(saved[source], own)))
    for key, average in state.averages.items():
        average.decay = decays.get(key, 0.0)
        if key not in decays:
            afresh.append(f"the average of the {key}" if key == "weights" else f"the {key}'s average")
    return list(dict.fromkeys(afresh))


def restore(state: State, folder: Path, model: str, say: Callable[[str], object] = print) -> Path | None:
    """Put the newest usable checkpoint into state, in place, and say what starts afresh; None where there is no checkpoint.

    Raises TrainerError where all are damaged, or the newest one is of another model.
    """
    damaged = ""
    for path in list_all(folder):
        try:
            about = json.loads(read_header(path).metadata["twinflow.training"])
            saved = load(path)
        except (WeightsError, KeyError, ValueError) as error:
            damaged = f"{path}: is not a usable checkpoint ({error})"
            say(f"{damaged}; going on from the one before")
            continue
        if about.get("model", model) != model:
            raise TrainerError(
                f"{path}: was trained from other weights than those of --source or --base now; expected --name NEW for a run "
                "beside it, or the model that it started from, wherever it lies"
            )
        try:
            afresh = fill(state, saved, about["decays"])
        except (KeyError, RuntimeError) as error:
            raise TrainerError(f"{path}: does not fit this model ({error}); expected --name NEW for a run beside it") from None
        if afresh:
            say(f"{' and '.join(afresh)} {'start' if len(afresh) > 1 else 'starts'} afresh")
        state.step, state.skipped, state.seconds = about["step"], about["skipped"], about["seconds"]
        return path
    if damaged:
        raise TrainerError(f"{damaged}, nor is any other of this run; expected --name NEW for a run beside it")
    return None
