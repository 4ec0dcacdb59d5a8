"""What trainer.generate draws with where there is no run: any TwinFlow file or folder, a LoRA on its base, or a plain model."""

import argparse
import math
from pathlib import Path
from typing import Any

from twinflow.adapter import merge
from twinflow.backbones import is_second_embedder
from twinflow.lora_names import is_part
from twinflow.presets import SAMPLING
from twinflow.weights import WeightsError, read_header

from .. import TrainerError
from ..backbones import Backbone, backbone, packed
from ..config.resolving import known_model
from ..config.settings import DTYPES, Settings
from ..runs import run_of
from ..runs.generation import Subject, digest, settings_of, size_of
from ..weights.lora_file import read_adapter
from ..weights.trainee import Plain, VelocityModel
from .stored import files_of, provenance_of


def of_weights(args: argparse.Namespace) -> Subject:
    """Raises TrainerError or WeightsError, as far as headers tell before anything is loaded."""
    known = backbone(known_model(args.model))
    settings, dtype = settings_of(args, known), DTYPES[args.dtype] if args.dtype else None
    if args.size:  # images to edit are seen as large as what is drawn
        height, width = size_of(args.size, settings, known)
        own = dict(resolution=max(known.pixels, round(math.sqrt(height * width))))
        settings = settings.model_copy(update=dict(data=settings.data.model_copy(update=own)))
    own_base = "data" in known.unread  # it has no source and no encoders: what it needs lies beside the file
    files, names, metadata = [], set(), {}
    for file in files_of(args.weights)[0] if args.weights else ():
        files.append(file.path)
        names |= file.entries.keys()
        metadata |= read_header(file.path).metadata if file.path.suffix.lower() in packed.SAFE else {}
    provenance = provenance_of(args.weights, metadata)
    if provenance is not None and provenance.base_model not in ("", known.core.name):
        raise WeightsError(f"--weights {args.weights}: is of {provenance.base_model}; expected a file of {known.core.name}")
    shipped = getattr(known, "shipped", None)
    folder = files[0].parent if files else shipped.parent if shipped else Path()
    if own_base and not files and not shipped:
        raise TrainerError(f"{known.name} has no published model; expected --weights FILE of a run, or the run's folder")
    below = lambda: run_of(known).plain(settings, folder) if own_base else known.load(settings.data.source, dtype=dtype)
    about = dict(model=known.name, base=settings.data.source or known.core.models[known.name] or known.name)
    about |= dict(weights=files[0].name if len(files) == 1 else Path(args.weights).name) if files else {}
    about |= dict(hash=digest(files[0])) if len(files) == 1 else {}
    recommended = (provenance and provenance.sampler) or known.sampling
    name = Path(args.weights).name if args.weights else f"{known.name}, plain"
    made: dict[str, Any] = dict(name=name, settings=settings, folder=folder, recommended=recommended, about=about)
    base = lambda: Plain(known, below())
    if any(map(is_part, names)):
        check_base(known, settings, files[0], own_base)
        return Subject(network=lambda: adapted(known, below(), files[0]), base=base, **made)
    if any(map(is_second_embedder, names)):
        weights = files[0] if own_base else args.weights
        if not own_base:
            known.outline(settings.data.source, distilled=weights)
        load = lambda: known.load(settings.data.source, dtype=dtype, distilled=weights)
        return Subject(network=lambda: VelocityModel(known, load(), "two"), base=base, **made)
    source = args.weights or settings.data.source
    if not own_base:
        known.outline(source, fetch=True)
    load = (lambda: known.load(source, dtype=dtype)) if files else below
    made["recommended"] = (SAMPLING[30],)
    return Subject(network=lambda: Plain(known, load()), **made, plain=True)


def check_base(known: Backbone, settings: Settings, path: Path, own_base: bool) -> None:
    """Whether the adapter fits the base, before its encoders are loaded."""
    outline = None if own_base else known.outline(settings.data.source, fetch=True)
    if outline is not None:
        read_adapter(path, known, outline, "--weights ")


def adapted(known: Backbone, model: Any, path: Path) -> VelocityModel:
    """The base with an adapter or a LoRA of any layout merged into it, in place."""
    return VelocityModel(known, model, merge(known.core, model, read_adapter(path, known, model, "--weights ").tensors(), path))
