"""A model on disk in any form (diffusers folder, shards, one file, GGUF) as deferred tensors under diffusers' names."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import nn

from twinflow.backbones import all_backbones, find, is_second_embedder
from twinflow.layouts import PREFIXES, bare
from twinflow.weights import Provenance, WeightsError, read_header, shards

from .. import TrainerError
from ..backbones import Backbone, backbone, packed, single_files, sources
from ..backbones.packed import WeightsFile, open_weights
from ..tensors.deferred import Deferred, outlines
from ..weights.files import final


@dataclass
class Stored:
    """source: as it was named.  files: that it is made of.  folder: with its config.json.  network: without values, with a
    second time embedder where the files have one.  tensors: deferred, by diffusers' names.  unknown: those that the network has
    not, by their names in the files.  metadata: of the files.
    """

    source: str
    files: list[Path]
    folder: Path | None
    backbone: Backbone
    network: nn.Module
    tensors: dict[str, Any]
    unknown: dict[str, Any]
    metadata: dict[str, str]

    @property
    def second(self) -> dict[str, Any]:
        """The second time embedder's tensors, by diffusers' names."""
        start = self.backbone.core.time.name + "."
        return {name: t for name, t in self.tensors.items() if name.startswith(start)}

    @property
    def provenance(self) -> Provenance | None:
        return provenance_of(self.source, self.metadata)

    def refuse_unknown(self, fix: str = "expected its weights alone") -> None:
        """Raises TrainerError for tensors that the model has not."""
        if self.unknown:
            first = next(iter(self.unknown))
            raise TrainerError(
                f"{self.source}: holds {first!r} ({len(self.unknown)} such), unknown to {self.backbone.name}; {fix}"
            )


def provenance_of(source: object, metadata: Mapping[str, str]) -> Provenance | None:
    try:
        return Provenance.from_metadata(metadata)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None


def open_model(source: str, *, name: str | None = None, dtype: torch.dtype | None = None) -> Stored:
    """The model of a source (see backbones.sources).  Raises TrainerError or WeightsError.

    name: of the model, where its files do not tell.  dtype: of what is quantised in the files (None: bfloat16).
    """
    files, folder = files_of(source)
    metadata, found = {}, {}
    for file in files:
        metadata |= read_header(file.path).metadata if file.path.suffix.lower() in packed.SAFE else {}
        found |= deferred(file, dtype)
    known: Any = backbone_of(source, found, metadata, name)
    own, unknown = parted(found)
    tensors = known.core.layout.to_diffusers(own)
    network = fitted(known, outlines(tensors), folder, source)
    have = network.state_dict().keys() | set(known.markers)
    extra = {name: tensors.pop(name) for name in list(tensors) if name not in have}
    tensors |= known.marks(network)
    return Stored(source, [file.path for file in files], folder, known, network, tensors, unknown | extra, metadata)


def files_of(source: str) -> tuple[list[WeightsFile], Path | None]:
    """The files of a source, opened, and the folder with its config.json.  Raises TrainerError."""
    root = sources.fetch(source, ("transformer",))
    if root.is_dir():
        refuse_run(root)
        folder = sources.folder_of(root, "transformer", source)
        return [open_weights(path, streamed=True) for path in sources.weight_files(folder)], folder
    described = root.parent if sources.is_described(root.parent) else None
    return [open_weights(path, streamed=True) for path in shards(root)], described


def is_run(root: Path) -> bool:
    return (root / "config.json").is_file() and not sources.is_described(root)


def refuse_run(root: Path) -> None:
    if is_run(root):
        name = sources.read_config(root).get("name") or root.name
        raise TrainerError(f"{root}: is the folder of a run; expected a file of it, such as {final(root, name)}")


def deferred(file: WeightsFile, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """A file's tensors by their names in it; what is quantised there in dtype (None: bfloat16)."""

    def one(name: str, kind: str, shape: tuple[int, ...]) -> Deferred:
        wanted = (dtype or packed.WORK) if name in file.packed else None
        outline = torch.empty(shape, dtype=wanted or sources.DTYPES.get(kind, torch.uint8), device="meta")
        return Deferred(outline, lambda: file.read(name, wanted))

    return {name: one(name, kind, shape) for name, (kind, shape) in file.entries.items()}


def parted(found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A transformer's tensors by bare names, and those of other parts of a whole checkpoint by their names in the file."""
    whole, own, others = any(name.startswith(PREFIXES[0]) for name in found), {}, {}
    for name, tensor in found.items():
        inside = name.startswith(PREFIXES[0]) if whole else not name.startswith(packed.BESIDE)
        if inside and bare(name) not in own:
            own[bare(name)] = tensor
        else:
            others[name] = tensor
    return own, others


def backbone_of(source: object, names: Collection[str], metadata: Mapping[str, str], name: str | None = None) -> Backbone:
    """By its name, what the metadata say, or the names of tensors.  Raises TrainerError."""
    if name is not None:
        return backbone(name)
    said, bares = metadata.get("twinflow.base_model", ""), {bare(key) for key in names}
    records = {record.name: record for record in all_backbones().values()}
    if said not in ("", *records):
        raise TrainerError(
            f"{source}: says that it is of {said!r}; expected one of {', '.join(records)} (--model names another)"
        )
    if said:
        return trained(records[said])
    marked = (known for known in map(trained, records.values()) if bares & {*getattr(known, "markers", ())})
    record = find(bares)
    if record is None:
        titles = ", ".join(record.title for record in records.values() if not record.variant)
        raise TrainerError(f"{source}: holds {single_files.other(names)}; expected a model of {titles}")
    return next(marked, None) or trained(record)


def trained(record: Any) -> Backbone:
    return backbone(next(iter(record.models)))


def fitted(known: Any, shells: dict[str, Any], folder: Path | None, source: object) -> nn.Module:
    """The network that these tensors are of, without values.  Raises TrainerError where some are missing, or of other sizes."""
    config = sources.read_config(folder) if folder else known.settings_of(shells, str(source))
    if (found := config.get("_class_name", known.transformer_class)) != known.transformer_class:
        raise TrainerError(f"{source}: is a {found}; expected a {known.transformer_class} ({known.name})")
    with init_empty_weights():
        network = getattr(diffusers, known.transformer_class).from_config(dict(config))
        if any(map(is_second_embedder, shells)):
            known.core.time.install(network)
    sources.check_fits({name: ("", tuple(t.shape)) for name, t in shells.items()}, network, source)
    return network
