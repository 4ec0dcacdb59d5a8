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
    state: State, folder: Path, config_hash: str, keep: int, *, main: bool = True, say: Callable[[str], object] = print
) -> Path | None:
    """Save as folder/step-00000100.safetensors, then delete all but the newest `keep`; None, and said, where it fails.

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
        config=config_hash,
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
def fill(state: State, saved: dict[str, Tensor], decays: dict[str, float]) -> None:
    """Copy saved tensors into state.  Raises KeyError, IndexError or RuntimeError where they do not fit."""
    for k, optimizer in enumerate(state.optimizers):
        optimizers.prime(optimizer, {int(name.split(".")[2]) for name in saved if name.startswith(f"optimizer.{k}.")})
    for name, own in contents(state).items():
        sharding.local(own).copy_(sharding.local(sharding.share(saved[name], own)))
    for key, average in state.averages.items():
        average.decay = decays[key]


def restore(state: State, folder: Path, config_hash: str) -> Path | None:
    """Put the newest checkpoint into state, in place; None where there is none.

    Raises TrainerError for one that other settings made or that is damaged.
    """
    if path := newest(folder):
        try:
            about = json.loads(read_header(path).metadata["twinflow.training"])
            saved = load(path)
        except (WeightsError, KeyError, ValueError) as error:
            raise TrainerError(
                f"{path}: is not a usable checkpoint ({error}); delete it to go on from the one before"
            ) from None
        if about["config"] != config_hash:
            raise TrainerError(f"{path}: was made with other settings; use another --name, or delete {folder} to start afresh")
        try:
            fill(state, saved, about["decays"])
        except (KeyError, IndexError, RuntimeError) as error:
            raise TrainerError(f"{path}: does not fit this model ({error}); delete {folder} to start afresh") from None
        state.step, state.skipped, state.seconds = about["step"], about["skipped"], about["seconds"]
    return path
