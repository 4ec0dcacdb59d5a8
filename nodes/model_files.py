"""Model files on disk, safetensors and GGUF, looked at before a tensor is read.  Nothing is ever unpickled."""

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import folder_paths
from torch import Tensor

from ..twinflow.backbones import Backbone, is_second_embedder
from ..twinflow.layouts import PREFIXES, bare
from ..twinflow.weights import Provenance, WeightsError, load, read_header
from . import gguf_files, lora
from .supported import backbone_of_keys

MODELS, LORAS = "diffusion_models", "loras"
SAFE = (".safetensors", ".sft")


def places(folder: str) -> list[str]:
    """Where files of this kind lie.  Nothing is registered with core, whose model library shows every kind that is."""
    known = folder_paths.folder_names_and_paths.get(folder)
    return known[0] if known else [os.path.join(folder_paths.models_dir, folder)]


def names(*folders: str) -> list[str]:
    """What the folders hold, with GGUF, which core's own lists leave out."""
    found = []
    for folder in folders:
        files = {name for place in places(folder) for name in folder_paths.recursive_search(place, [".git"])[0]}
        found += sorted(filter(is_readable, files))
    return list(dict.fromkeys(found))


def is_readable(name: str) -> bool:
    return Path(name).suffix.lower() in (*SAFE, ".gguf")


def path_of(name: str, *folders: str) -> str:
    """The file of this name in one of the folders.  Raises ValueError for a name that leads out of them or to nothing."""
    parts = name.replace("\\", "/").split("/")
    if Path(name).is_absolute() or ".." in parts or ":" in parts[0]:
        raise ValueError(f"file name {name!r} is refused: expected a name inside the models/{folders[0]} folder, without '..'")
    if not is_readable(name):
        raise ValueError(
            f"file {name!r} is refused: expected .safetensors or .gguf; other formats can run code when they are read"
        )
    for place in (place for folder in folders for place in places(folder)):
        if os.path.isfile(path := os.path.join(place, name)):
            return path
    raise ValueError(f"file {name!r} is not there: expected it in {' or '.join(f'models/{folder}' for folder in folders)}")


@dataclass
class ModelFile:
    """A file's header: its keys, without their prefixes, dtypes, backbone and metadata."""

    path: str
    keys: dict[str, str]
    dtypes: Counter
    metadata: dict[str, str]
    read: Callable[[list[str], bool], dict[str, Tensor]] = field(repr=False)

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def backbone(self) -> Backbone | None:
        return backbone_of_keys(self.keys)

    @property
    def second(self) -> list[str]:
        """The keys of a second embedder, as the file names them but bare."""
        return [key for key in self.keys if is_second_embedder(key) and not lora.is_part(key)]

    @property
    def provenance(self) -> Provenance | None:
        try:
            return Provenance.from_metadata(self.metadata)
        except WeightsError as error:
            raise WeightsError(f"{self.name}: {error}. Write the file again, or load it with core's loader") from None

    def tensors(self, keys: list[str] | None = None) -> dict[str, Tensor]:
        """These tensors under their bare names; no other is read.  Quantised ones that must be renamed come unpacked."""
        keys = list(self.keys if keys is None else keys)
        renamed = self.backbone is None or self.backbone.layout.native not in self.keys
        read = self.read([self.keys[key] for key in keys], renamed)
        return {key: read[self.keys[key]] for key in keys}

    def keys_found(self) -> str:
        """The beginning of the list of keys, for messages."""
        some = ", ".join(list(self.keys.values())[:6])
        return f"{len(self.keys)} keys: {some}{', ...' if len(self.keys) > 6 else ''}"


def open_file(path: str) -> ModelFile:
    """Any shard of a sharded file stands for all of them.

    Raises WeightsError with one line for a file that is cut off, damaged, or of a type that cannot be read.
    """
    if path.lower().endswith(".gguf"):
        header = gguf_files.read_header(path)
        return model_file(path, header.dtypes, header.metadata, header.read)
    headers = {shard: read_header(shard) for shard in shards(path)}
    home = {key: shard for shard, header in headers.items() for key in header.tensors}
    dtypes = {key: dtype for header in headers.values() for key, (dtype, _) in header.tensors.items()}
    metadata = {key: value for header in headers.values() for key, value in header.metadata.items()}

    def read(keys: list[str], unpack: bool) -> dict[str, Tensor]:
        tensors = {}
        for shard in headers:
            if here := [key for key in keys if home[key] == shard]:
                tensors |= load(shard, here)
        return tensors

    return model_file(path, dtypes, metadata, read)


def shards(path: str) -> list[str]:
    """All files of a diffusers release that is cut into name-00001-of-00009.safetensors and so on; else the path alone."""
    cut = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})(\.[a-z]+)", path)
    if not cut:
        return [path]
    name, of, ending = cut.groups()
    every = [f"{name}-{i:05}-of-{of}{ending}" for i in range(1, int(of) + 1)]
    if missing := [Path(shard).name for shard in every if not Path(shard).is_file()]:
        lacks = f"{len(missing)} of its {len(every)} shards are not beside it: {', '.join(missing[:3])}"
        raise WeightsError(f"{Path(path).name}: {lacks}. Fetch them")
    return every


def model_file(path: str, dtypes: dict[str, str], metadata: dict[str, str], read) -> ModelFile:
    inside = PREFIXES[0]
    whole = [key for key in dtypes if key.startswith(inside)] or list(dtypes)  # a checkpoint has a VAE and encoders beside it
    return ModelFile(path, {bare(key): key for key in whole}, Counter(dtypes[key] for key in whole), metadata, read)
