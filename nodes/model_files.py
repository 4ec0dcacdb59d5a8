"""Model files on disk, safetensors and GGUF, looked at before a tensor is read.  Nothing is ever unpickled."""

import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import comfy.utils
import folder_paths
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..twinflow import lora_names
from ..twinflow.backbones import Backbone, all_backbones, is_second_embedder
from ..twinflow.known_files import Recognised, recognise
from ..twinflow.layouts import bare
from ..twinflow.presets import Sampling
from ..twinflow.weights import Provenance, WeightsError, load, read_header, shards
from . import gguf_files
from .quantised import COMPANIONS, OLD_MARK, Layer, can_stay, dequantised, kept, layers_of
from .supported import backbone_of_keys
from .values import check_values

MODELS, LORAS = "diffusion_models", "loras"
SAFE = (".safetensors", ".sft")
SHORT = {"F32": "float32", "F16": "float16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8 e5m2"}


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


def nothing(key: str) -> bool:
    return False


@dataclass
class ModelFile:
    """A file's header: what it holds under bare names, that is without their prefixes, backbone and metadata.

    names: of everything, bare -> in the file.  entries: bare -> (dtype, shape).  keys: the weights alone, bare, without what
    their quantisation adds.  layers: the quantised ones.  beside: tensors of other models in the file (VAE, text encoders).
    """

    path: str
    names: dict[str, str]
    entries: dict[str, tuple[str, tuple[int, ...]]]
    metadata: dict[str, str]
    read: Callable[[list[str], Callable[[str], bool]], dict[str, Tensor]] = field(repr=False)
    beside: int = 0
    keys: list[str] = field(init=False)
    layers: dict[str, Layer] = field(init=False)

    def __post_init__(self):
        self.keys = [key for key in self.names if key != OLD_MARK and key.rpartition(".")[2] not in COMPANIONS]
        self.layers = {} if is_gguf(self.path) else layers_of(self.name, self.entries, self.metadata, self._raw, bare)

    def _raw(self, keys: list[str], keep: Callable[[str], bool] = nothing) -> dict[str, Tensor]:
        back = {self.names[key]: key for key in keys}
        read = self.read(list(back), lambda name: keep(back[name]))
        return {key: read[name] for name, key in back.items()}

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def backbone(self) -> Backbone | None:
        return backbone_of_keys(self.keys)

    @property
    def native(self) -> bool:
        """Whether the names are ComfyUI's."""
        return self.backbone is not None and self.backbone.layout.native in self.keys

    @property
    def second(self) -> list[str]:
        """The keys of a second embedder, as the file names them but bare."""
        return [key for key in self.keys if is_second_embedder(key) and not lora_names.is_part(key)]

    @property
    def lora(self) -> list[str]:
        return [key for key in self.keys if lora_names.is_part(key)]

    @property
    def provenance(self) -> Provenance | None:
        try:
            return Provenance.from_metadata(self.metadata)
        except WeightsError as error:
            raise WeightsError(f"{self.name}: {error}. Write the file again, or load it with core's loader") from None

    @cached_property
    def recognised(self) -> Recognised:
        """What is known of its LoRA, where its own metadata name nothing."""
        if self.provenance or not self.lora:
            return Recognised(None)
        return recognise(self.path, self.metadata, [self.names[key] for key in self.lora])

    @property
    def sampler(self) -> tuple[Sampling, ...]:
        """Settings that the file recommends, or that are known of it."""
        if self.provenance:
            return self.provenance.sampler
        return (self.recognised.known.sampling,) if self.recognised.known else ()

    def dtypes(self) -> str:
        """How the weights are stored, the most numerous first: "fp8 scaled, bf16"."""
        kinds = Counter()
        for key in self.keys:
            layer = self.layers.get(key.removesuffix(".weight"))
            dtype, shape = self.entries[key]
            kinds[f"{layer.kind} scaled" if layer else SHORT.get(dtype, dtype)] += math.prod(shape)
        return ", ".join(kind for kind, _ in kinds.most_common(3))

    def tensors(
        self,
        keys: list[str] | None = None,
        keep: Callable[[str], bool] = nothing,
        dtype: torch.dtype = torch.float32,
    ) -> dict[str, Tensor]:
        """These tensors under their bare names; no other is read.

        keep: whether a quantised weight of this bare key may stay as it is, if ComfyUI can use it; all others are
        dequantised to dtype.
        """
        keys = list(self.keys if keys is None else keys)
        quantised = {key: layer for key in keys if (layer := self.layers.get(key.removesuffix(".weight"))) is not None}
        companions = [part for layer in quantised.values() for part in layer.parts.values()]
        found = self._raw([*keys, *companions], keep)
        out = {key: found[key] for key in keys if key not in quantised}
        for key, layer in quantised.items():
            if keep(key) and can_stay(layer, self.entries):
                out |= kept(layer, found)
            else:
                bias = self.entries.get(f"{layer.module}.bias")
                out[key] = dequantised(layer, found, bias and bias[1][0], dtype)
        check_values(self.name, out, lora_names.is_part)
        return out

    def keys_found(self) -> str:
        """The beginning of the list of keys, for messages."""
        some = ", ".join([self.names[key] for key in self.keys[:6]])
        return f"{len(self.keys)} keys: {some}{', ...' if len(self.keys) > 6 else ''}"


def is_own_base(file: ModelFile) -> bool:
    """Whether it says that it is a plain model which one of our trainings starts from, and so has no time conditioning."""
    return "twinflow.base_model" in file.metadata and "twinflow.time" not in file.metadata and not file.second


def is_gguf(path: str) -> bool:
    return path.lower().endswith(".gguf")


def open_file(path: str) -> ModelFile:
    """Any shard of a sharded file stands for all of them.

    Raises WeightsError with one line for a file that is cut off, damaged, or of a type that cannot be read.
    """
    if is_gguf(path):
        header = gguf_files.read_header(path)
        return model_file(path, header.entries, header.metadata, header.read)
    try:
        headers = {shard: read_header(shard) for shard in map(str, shards(path))}
    except WeightsError as error:  # the library names the path, which says no more on the page than the name
        raise WeightsError(str(error).replace(str(Path(path).parent) + os.sep, "")) from None
    home = {key: shard for shard, header in headers.items() for key in header.tensors}
    entries = {key: entry for header in headers.values() for key, entry in header.tensors.items()}
    metadata = {key: value for header in headers.values() for key, value in header.metadata.items()}

    def read(keys: list[str], keep: Callable[[str], bool]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for shard in dict.fromkeys(home[key] for key in keys):
            here = [key for key in keys if home[key] == shard]
            if len(here) < len(headers[shard].tensors) / 2:
                tensors |= load(shard, here)
            else:
                try:
                    whole = comfy.utils.load_torch_file(shard, safe_load=True)  # core's reader, whose tensors stream from disk
                except (SafetensorError, ValueError) as error:
                    raise WeightsError(f"{Path(shard).name}: cannot be read as safetensors ({error})") from None
                tensors |= {key: whole[key] for key in here}
        return tensors

    return model_file(path, entries, metadata, read)


def model_file(path: str, entries: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str], read) -> ModelFile:
    plain = {key: key.replace("_orig_mod.", "") for key in entries}  # torch.compile's, wherever it stands
    prefix = prefix_in(plain.values())
    whole = [key for key in entries if prefix and plain[key].startswith(prefix)] or list(entries)
    names: dict[str, str] = {}
    for key in whole:
        name = bare(plain[key].removeprefix(prefix))
        names[name if name not in names else key] = key  # a LoRA may have a module under two prefixes
    own = {key: entries[name] for key, name in names.items()}
    return ModelFile(path, names, own, metadata, read, len(entries) - len(whole))


def prefix_in(names) -> str:
    """What stands before the diffusion model's keys in a file that holds one, whatever it is."""
    marks = [mark for record in all_backbones().values() for mark in (record.layout.native, record.layout.diffusers)]
    before = {name[: -len(mark)] for name in names for mark in marks if name.endswith(f".{mark}")}
    return min(before, key=len, default="")
