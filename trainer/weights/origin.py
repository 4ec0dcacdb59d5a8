"""Training that starts from a file (--init) and not from the model as it was published.

All weights of a TwinFlow model take the model's place.  An adapter of ours, or a LoRA of any layout, is put into the run's own
LoRA; trainer.full merges it into the weights.  A LoRA of a smaller rank is filled up: A as it was drawn, B with zeros, so that
it says the same and all of it can learn.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from twinflow.backbones import is_second_embedder
from twinflow.lora_names import is_part
from twinflow.plain_json import loads
from twinflow.weights import Provenance, WeightsError, read_header

from .. import TrainerError
from ..backbones import Backbone
from ..config.saved import INIT
from ..config.settings import Settings
from ..tensors import deferred
from . import lora
from .lora_file import Adapter, read_adapter
from .trainee import Trainee, second_of

Holds = Literal["model", "adapter"]


@dataclass
class Origin:
    """What a run starts from, checked.  adapter: None of a whole model."""

    path: Path
    holds: Holds
    about: dict[str, str]
    adapter: Adapter | None = None

    @property
    def told(self) -> str:
        """For the metadata of what is written: no path."""
        return f"{self.about['name']} sha256:{self.about['sha256']}"

    def start(self, trainee: Trainee) -> str:
        """Put an adapter into a LoRA that is to be trained; returns what was done, in words."""
        assert self.adapter is not None
        adapter, rank, is_lora = self.adapter, trainee.settings.adapter.rank, trainee.settings.mode == "lora"
        fresh = self.fill(trainee) if is_lora else 0
        ranks = {len(own.down) for own in adapter.modules.values()}
        filled = f" (rank {', '.join(map(str, sorted(ranks)))}, filled up to {rank})" if is_lora and ranks - {rank} else ""
        parts = [f"the LoRA of {len(adapter.modules)} layers{filled}"] + ["the second time embedder"] * bool(adapter.second)
        notes = [f"{fresh} more layers start at zero"] * (fresh > 0)
        if trainee.time == "two" and not adapter.second:
            notes.append("it has no second time embedder, so a new one is trained")
        return "; ".join([f"starting from {self.path.name}: {' and '.join(parts)}", *notes, *adapter.notes])

    @torch.no_grad()
    def fill(self, trainee: Trainee) -> int:
        """Returns how many layers of the LoRA the adapter says nothing of."""
        assert self.adapter is not None
        factor, fresh, modules = lora.scale(trainee.settings.adapter), 0, self.adapter.modules
        for name, down in trainee.tensors.items():
            if not (match := lora.NAME.fullmatch(name.removeprefix("model."))) or match[2] != "A":
                continue
            if (own := modules.get(match[1])) is None:
                fresh += 1
                continue
            up = trainee.tensors[name.replace(".lora_A.", ".lora_B.")]
            down[: len(own.down)] = own.down
            up[:, : len(own.down)] = own.up / factor
        for name, value in self.adapter.second.items():
            trainee.tensors[f"model.{name}"].copy_(value)
        return fresh


def opened(backbone: Backbone, settings: Settings, *, begun: bool) -> tuple[Origin | None, str]:
    """What --init names, None where there is none, and a line to be said.  Raises TrainerError or WeightsError.

    begun: the run has trained already.  It goes on from its own state, for which an adapter is not needed any more; a model is.
    """
    path, before, is_lora = settings.training.init, recorded(settings.folder) if begun else None, settings.mode == "lora"
    once = is_lora and before is not None and before["holds"] == "adapter"
    if path is None and before is None:
        return None, ""
    if path is None or (once and not path.exists()):
        assert before is not None
        if not once:
            raise TrainerError(began(before, "--init is not given"))
        return Origin(Path(before["name"]), "adapter", before), ""
    check_path(path)
    kind = holds(path)
    if begun and is_lora and kind == "adapter":
        if before is None:
            return None, f"--init {path} is not read: the run has begun without it"
        if once:
            same = sha256(path) == before["sha256"]
            said = "" if same else f"--init {path} is not read again: the run has begun, from {before['name']}"
            return Origin(path, "adapter", before), said
    if begun and (before is None or once or (is_lora and kind == "adapter")):
        raise TrainerError(began(before, f"--init is {path}"))
    adapter = check_adapter(backbone, settings, path) if kind == "adapter" else None
    if kind == "model":
        check_model(backbone, settings, path)
    return Origin(path, kind, before or {}, adapter), ""


def noted(origin: Origin, settings: Settings) -> dict[str, str]:
    """What is recorded of it."""
    kind = origin.holds if settings.mode == "lora" else "model"
    return origin.about or dict(name=origin.path.name, sha256=sha256(origin.path), holds=kind)


def model(
    backbone: Backbone, settings: Settings, plain: Callable[[], nn.Module], dtype: torch.dtype | None = None
) -> nn.Module:
    """The model that training starts from: plain(), unless --init holds a model or is merged into one."""
    path = settings.training.init
    if path is None or (kind := found(settings)) == "adapter" and settings.mode == "lora":
        return plain()
    if kind == "model":
        return backbone.load(settings.data.source, dtype=dtype, distilled=path)
    made = plain()
    adapter = read_adapter(path, backbone, made)
    if adapter.second:
        second_of(backbone, made).float()
    for name, (down, up) in list(adapter.modules.items()):
        weight = made.get_submodule(name).float().weight  # as they will be trained; bf16 would swallow small changes
        assert isinstance(weight, nn.Parameter)
        if deferred.waits(weight):
            deferred.change(weight, lambda value, down=down, up=up: value + up @ down)
            del adapter.modules[name]
    lora.merge(backbone, made, adapter.tensors(), path)
    return made


def below(backbone: Backbone, settings: Settings, plain: Callable[[], nn.Module]) -> nn.Module:
    """The model that a weights file of the run is put on."""
    path = settings.training.init
    if path is not None and (settings.mode == "lora" or path.is_file()) and found(settings) == "model":
        return backbone.load(settings.data.source, distilled=path)
    return plain()


def found(settings: Settings) -> Holds:
    """What --init holds; of a file that is gone, what the run has recorded."""
    path = settings.training.init
    assert path is not None
    before = recorded(settings.folder)
    if not path.exists() and before is not None and before["holds"] == "adapter":
        return "adapter"
    check_path(path)
    return holds(path)


def check_path(path: Path) -> None:
    if path.is_dir():
        inside = path / f"{path.name}.safetensors"
        such = f", such as {inside}" if inside.is_file() else ""
        raise TrainerError(f"--init {path}: is a folder; expected a .safetensors file{such}")
    if not path.exists():
        raise TrainerError(f"--init {path}: is not there; expected the .safetensors file to start from")


def holds(path: Path) -> Holds:
    """Raises WeightsError for a file that is neither a LoRA nor a TwinFlow model."""
    names = read_header(path).tensors
    if any(is_part(name) for name in names):
        return "adapter"
    if any(is_second_embedder(name) for name in names):
        return "model"
    raise WeightsError(
        f"--init {path}: is neither a LoRA nor a TwinFlow model, which has a second time embedder (found "
        f"{', '.join(list(names)[:2]) or 'no tensor'}); expected one of these; a plain model is given by --source or --base"
    )


def check_model(backbone: Backbone, settings: Settings, path: Path) -> None:
    check_origin(backbone, path)
    if settings.mode == "lora" and settings.adapter.time == "fold":
        raise TrainerError(
            f"--init {path}: is a model with a second time embedder, which --time fold would not use; expected --time two"
        )
    backbone.outline(settings.data.source, distilled=path)


def check_adapter(backbone: Backbone, settings: Settings, path: Path) -> Adapter:
    check_origin(backbone, path)
    outline = outlined(backbone, settings)
    adapter = read_adapter(path, backbone, outline)
    time = backbone.core.time
    if adapter.second:
        wanted = {f"{time.name}.{name}": p.shape for name, p in second_of(backbone, outline).named_parameters()}
        if {name: t.shape for name, t in adapter.second.items()} != wanted:
            raise WeightsError(f"--init {path}: its second time embedder does not fit {backbone.name}: it is of another model")
    if settings.mode == "full":
        return adapter
    if adapter.second and settings.adapter.time == "fold":
        raise TrainerError(
            f"--init {path}: has a second time embedder, which --time fold has no place for; expected --time two"
        )
    targets, own = set(backbone.lora_targets(outline, settings.adapter.targets)), adapter.modules.keys()
    if more := sorted(own - targets):
        presets: Any = getattr(backbone, "presets", {})
        fits = next((p for p in (*presets, "all") if own <= set(backbone.lora_targets(outline, p))), None)
        outside = f"outside --targets {settings.adapter.targets}; expected --targets {fits}"
        why = outside if fits else "where no LoRA is trained; expected one of linear layers alone"
        raise TrainerError(f"--init {path}: has a LoRA of {more[0]!r} ({len(more)} such), {why}")
    most = max((len(module.down) for module in adapter.modules.values()), default=0)
    if most > settings.adapter.rank:
        raise TrainerError(
            f"--init {path}: is of rank {most}, which does not fit into --rank {settings.adapter.rank}; expected --rank {most} "
            "or more"
        )
    return adapter


def outlined(backbone: Backbone, settings: Settings) -> nn.Module:
    """The plain model that is trained, maybe without values; as published where it is not here yet."""
    model = backbone.outline(settings.data.source)
    if model is None:
        with torch.device("meta"):
            return backbone.skeleton()
    return model


def check_origin(backbone: Backbone, path: Path) -> None:
    """What the file says of itself."""
    provenance = Provenance.from_metadata(read_header(path).metadata)
    if provenance is not None and provenance.base_model not in ("", backbone.core.name):
        raise WeightsError(f"--init {path}: is of {provenance.base_model}; expected a file of {backbone.core.name}")


def recorded(folder: Path) -> dict[str, str] | None:
    """What the run in the folder was begun from."""
    try:
        about = loads((folder / "config.json").read_text("utf-8")).get(INIT)
    except (OSError, ValueError, AttributeError):
        return None
    return about if isinstance(about, dict) and {"name", "sha256", "holds"} <= about.keys() else None


def began(before: dict[str, str] | None, now: str) -> str:
    if before is None:
        return f"{now}, but the run was begun without one; expected --name NEW for a run that starts from it, or no --init"
    return (
        f"{now}, but the run was begun from {before['name']} (sha256 {before['sha256'][:12]}...); expected --name NEW for a "
        "run beside it, or that file, wherever it lies, to go on"
    )


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**22):
            digest.update(part)
    return digest.hexdigest()
