"""Training state on disk: one safetensors file a checkpoint, atomic, enough to go on with bit-equal weights.

Sharded training writes a folder in place of the file (see sharded); either goes on from what the other wrote.
Every draw and the order of the data are functions of (seed, step), so no generator's state need be kept.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from twinflow.atomic import remove_leftovers
from twinflow.ema import EMA
from twinflow.weights import WeightsError, read_header, save

from .. import TrainerError
from ..tensors import sharding
from . import disk, optimizers, sharded


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
    To be called by every process, for each writes its part of what is sharded, as a folder step-00000100; else only the
    main one writes.
    """
    tensors = contents(state)
    about = dict(
        step=state.step,
        skipped=state.skipped,
        seconds=state.seconds,
        model=model,
        decays={key: average.decay for key, average in state.averages.items()},
        processes=sharding.processes(),
    )
    path, size = folder / f"step-{state.step:08d}", disk.size_of(tensors.values())
    if any(isinstance(tensor, sharding.DTensor) for tensor in tensors.values()):
        say = say if main else lambda line: None
        if not disk.attempt(path, size, lambda: sharded.write(path, tensors, about, say), say, looked=True):
            return None
    else:
        path = path.with_suffix(".safetensors")
        metadata = {"twinflow.training": json.dumps(about)}
        if main and not disk.attempt(path, size, lambda: save(tensors, path, metadata), say):
            return None
    for old in list_all(folder)[keep:] if main else ():
        sharded.remove(old) if old.is_dir() else old.unlink()
    return path


def tidy(folder: Path, *, main: bool) -> None:
    """Remove what killed processes left half done in a run's folder, which is locked; all but the main one leave it to that."""
    if main:
        remove_leftovers(folder, "**/*")
        for path in (folder / "checkpoints").glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)


def list_all(folder: Path) -> list[Path]:
    """Checkpoints, files and folders, newest first."""
    named = f"step-{'[0-9]' * 8}"
    found = [*folder.glob(f"{named}.safetensors"), *(path for path in folder.glob(named) if path.is_dir())]
    return sorted(found, key=lambda path: path.name, reverse=True)


def newest(folder: Path) -> Path | None:
    return next(iter(list_all(folder)), None)


class File:
    """A checkpoint of one file.  about: what write() noted.  shapes: of its tensors by name.  Raises WeightsError."""

    def __init__(self, path: Path):
        self.path, header = path, read_header(path)
        try:
            self.about = sharded.about_of(header.metadata["twinflow.training"])
        except (KeyError, ValueError) as error:
            raise WeightsError(f"it has no training state ({error})") from None
        self.shapes = {name: shape for name, (_, shape) in header.tensors.items()}

    def read(self, into: Mapping[str, Tensor]) -> None:
        """Copy the tensors of these names, one by one, to where each is and as it is sharded."""
        try:
            with safe_open(self.path, "pt") as file:
                for name, own in into.items():
                    sharding.local(own).copy_(sharding.local(sharding.share(file.get_tensor(name), own)))
        except SafetensorError as error:
            raise WeightsError(str(error)) from None


Saved = File | sharded.Folder


@torch.no_grad()
def fill(state: State, saved: Saved) -> list[str]:
    """Copy saved tensors into state; returns what starts afresh, for it is not in there.

    Raises KeyError or RuntimeError where the trained tensors do not fit, and WeightsError for damage.
    """
    afresh, decays, shapes = [], saved.about["decays"], saved.shapes
    for name, p in state.tensors.items():
        if shapes[f"tensors.{name}"] != tuple(p.shape):
            raise RuntimeError(f"{name} is {shapes[f'tensors.{name}']}; expected {tuple(p.shape)}")
    if extra := [n for n in shapes if n.startswith("tensors.") and n.removeprefix("tensors.") not in state.tensors]:
        raise KeyError(extra[0])
    for k, optimizer in enumerate(state.optimizers):
        prefix = f"optimizer.{k}."
        wanted = {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
        slots = {int(name.split(".")[2]) for name in wanted}
        if fits := len(slots) == 0 or max(slots) < sum(len(group["params"]) for group in optimizer.param_groups):
            optimizers.prime(optimizer, slots)
            fits = wanted == {prefix + name: tuple(t.shape) for name, t in optimizers.tensors(optimizer).items()}
        if not fits:
            optimizer.state.clear()
            afresh.append("the optimiser's memory")
    own = contents(state)
    known = {n: t for n, t in own.items() if not n.startswith("averages.") or n.split(".")[1] in decays}
    saved.read(known)
    for name in own.keys() - known.keys():  # averages that were not kept: of the weights as they are
        sharding.local(own[name]).copy_(sharding.local(own["tensors." + name.split(".", 2)[2]]))
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
            saved = sharded.Folder(path) if path.is_dir() else File(path)
            about = saved.about
            if about.get("model", model) != model:
                raise TrainerError(
                    f"{path}: was trained from other weights than those of --source, --base or --init now; expected --name NEW "
                    "for a run beside it, or the model that it started from, wherever it lies"
                )
            afresh = fill(state, saved)
        except WeightsError as error:
            damaged = f"{path}: is not a usable checkpoint ({str(error).removeprefix(f'{path}: ')})"
            say(f"{damaged}; going on from the one before")
            continue
        except (KeyError, RuntimeError) as error:
            raise TrainerError(f"{path}: does not fit this model ({error}); expected --name NEW for a run beside it") from None
        if afresh:
            say(f"{' and '.join(afresh)} {'start' if len(afresh) > 1 else 'starts'} afresh")
        now, then = sharding.processes(), about.get("processes")
        if then not in (None, now):
            say(f"{path} is of {then} process{'es' * (then > 1)}, and {now} {'train' if now > 1 else 'trains'} now: "
                "its state is shared out anew, and the rows of a step are others than they would have been")  # fmt: skip
        state.step, state.skipped, state.seconds = about["step"], about["skipped"], about["seconds"]
        return path
    if damaged:
        raise TrainerError(f"{damaged}, nor is any other of this run; expected --name NEW for a run beside it")
    return None
