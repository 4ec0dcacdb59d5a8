"""The weights file of a training state: what a run would have written at that step, from its checkpoint alone."""

from pathlib import Path
from typing import Any

import torch

from twinflow.weights import Provenance, WeightsError, read_header

from .. import TrainerError
from ..backbones import backbone
from ..config.saved import read_settings
from ..config.settings import DTYPES, Settings
from ..tensors.deferred import Deferred
from ..training import checkpoint, sharded
from ..weights import lora, origin
from .stored import open_model

START = "model."  # of the network's names in a state


def is_state(path: Path) -> bool:
    if path.is_dir():
        return (path / sharded.ABOUT).is_file()
    return path.suffix == ".safetensors" and "twinflow.training" in read_header(path).metadata


def of_state(path: Path) -> tuple[dict[str, Any], dict[str, str], torch.dtype]:
    """Tensors of the file, deferred, its metadata, and the dtype that the run writes.  Raises TrainerError or WeightsError."""
    run = path.parent.parent
    if not (run / "config.json").is_file():
        raise TrainerError(f"{path}: is a training state without its run; expected {run / 'config.json'} beside its folder")
    settings: Settings = read_settings(run)
    known: Any = backbone(settings.model)
    try:
        saved = sharded.Folder(path) if path.is_dir() else checkpoint.File(path)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    which = "averages.weights." if "weights" in saved.about["decays"] else "tensors."

    def one(name: str, shape: tuple[int, ...]) -> Deferred:
        def make() -> torch.Tensor:
            into = torch.empty(shape)
            saved.read({name: into})
            return into

        return Deferred(torch.empty(shape, device="meta"), make)

    start = which + START
    values: dict[str, Any] = {n.removeprefix(start): one(n, s) for n, s in saved.shapes.items() if n.startswith(start)}
    is_lora = settings.mode == "lora"
    if is_lora:
        tensors = lora.to_file(known, values, lora.scale(settings.adapter))
    else:
        tensors = known.to_file(untrained(known, settings, run, values) | values)
    time, rank = (settings.adapter.time, settings.adapter.rank) if is_lora else ("two", None)
    before = origin.recorded(run)
    init = f"{before['name']} sha256:{before['sha256']}" if before else ""
    about = Provenance(
        time, known.core.name, rank, known.sampling, saved.about["step"], settings.hash(), init=init, license=known.license
    )
    wanted = settings.output.save_dtype
    return tensors, about.to_metadata(), DTYPES[settings.memory.dtype if wanted == "auto" else wanted]


def untrained(known: Any, settings: Settings, run: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The weights that full training leaves as they were, for nothing uses what they give: of the model it started from."""
    beside = run / "base.safetensors"
    init = settings.training.init
    start = init if init is not None and origin.found(settings) == "model" else beside if beside.is_file() else None
    base = open_model(str(start or settings.data.source or known.repository), name=settings.model)
    with torch.device("meta"):
        whole = base.network.state_dict().keys() | known.marks(base.network).keys()
    missing = {name: base.tensors[name] for name in whole - values.keys() if name in base.tensors}
    idle = tuple(f"{name}." for name in known.idle(base.network))
    if lost := [
        name for name in missing if not name.startswith(idle or ("\0",)) and name in dict(base.network.named_parameters())
    ]:
        raise TrainerError(f"{run}: its training state has no {lost[0]!r} ({len(lost)} such); expected one of {known.name}")
    return missing
