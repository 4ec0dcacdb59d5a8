"""A weights file of any form, read tensor by tensor: plain safetensors, ComfyUI's scaled fp8 and int8, GGUF.

What is quantised in the file comes out as the weight that it stands for; a form that nobody here reads is refused by name when
the file is opened, before a tensor is read.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from twinflow.layouts import bare
from twinflow.quantised import COMPANIONS, FP8, INSTEAD, OLD_MARK, Entries, Layer, dequantised, layers_of, plain
from twinflow.weights import WeightsError, read_header

from .. import TrainerError

SAFE = (".safetensors", ".sft")
ENDINGS = (*SAFE, ".gguf")
FIRST = b"GGUF"
BESIDE = ("text_encoders.", "first_stage_model.", "cond_stage_model.", "conditioner.", "vae.")  # in a whole checkpoint
WORK = torch.bfloat16  # of what is unpacked, where nobody says


@dataclass(frozen=True)
class WeightsFile:
    """entries: name in the file -> (dtype, shape) of every weight, as it is when unpacked.  packed: those that are quantised.

    read: one tensor by its name, in a dtype (None: as it is stored; of a packed one bfloat16).
    """

    path: Path
    entries: dict[str, tuple[str, tuple[int, ...]]]
    packed: frozenset[str]
    read: Callable[[str, torch.dtype | None], Tensor] = field(repr=False)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, (_, shape) in self.entries.items()}

    def tensors(self, names: Iterable[str] | None = None, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Packed ones in dtype (None: bfloat16), the others as they are stored, on disk until they are used."""
        names = list(self.entries if names is None else names)
        return {name: self.read(name, dtype if name in self.packed else None) for name in names}


def is_weights(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS


def open_weights(path: Path, *, streamed: bool = False) -> WeightsFile:
    """streamed: nothing that was read stays mapped, so memory does not grow with it; slower for many small tensors.

    Raises TrainerError, or WeightsError, with one line for a file that cannot be used.
    """
    if not is_weights(path):
        raise TrainerError(f"{path}: is a {path.suffix or 'nameless'} file; expected .safetensors or .gguf")
    return open_gguf(path, streamed) if path.suffix.lower() == ".gguf" else open_safetensors(path, streamed)


def open_safetensors(path: Path, streamed: bool = False) -> WeightsFile:
    header, file = read_header(path), Streamed(path) if streamed else opened(path)
    entries, names = {}, {}
    for name, entry in header.tensors.items():
        key = bare(name) if bare(name) not in names else name
        entries[key], names[key] = entry, name
    some = lambda keys: {key: file.get_tensor(names[key]) for key in keys}
    layers = layers_of(str(path), entries, header.metadata, some, bare)
    weights = {key for key in entries if key != OLD_MARK and key.rpartition(".")[2] not in COMPANIONS}
    check_layers(path, entries, weights, layers)
    packed = {names[f"{layer.module}.weight"]: layer for layer in layers.values()}

    def read(name: str, dtype: torch.dtype | None) -> Tensor:
        layer = packed.get(name)
        if layer is None:
            tensor = file.get_tensor(name)
            return tensor if dtype is None else tensor.to(dtype)
        return dequantised(layer, some([f"{layer.module}.weight", *layer.parts.values()])).to(dtype or WORK)

    own = {names[key]: entries[key] for key in entries if key in weights}
    return WeightsFile(path, own, frozenset(packed), read)


class Streamed:
    """Opens the file for each tensor, whose pages go when it does."""

    def __init__(self, path: Path):
        self.path = path

    def get_tensor(self, name: str) -> Tensor:
        with opened(self.path) as file:
            return file.get_tensor(name)


def opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise WeightsError(f"{path}: cannot be read as safetensors ({error})") from None


def check_layers(path: Path, entries: Entries, weights: set[str], layers: dict[str, Layer]) -> None:
    """Raises WeightsError for a layer that is not a weight times its scale, and for a weight that has lost its scale."""
    if rotated := next((layer for layer in layers.values() if not plain(layer)), None):
        raise WeightsError(f"{path}: is quantised as {rotated.kind}, rotated, which the trainer cannot read. {INSTEAD}")
    if OLD_MARK in entries or any(not module.startswith(BESIDE) for module in layers):
        own = [key for key in weights if entries[key][0] in FP8 and len(entries[key][1]) == 2 and not key.startswith(BESIDE)]
        lost = [key for key in own if key.removesuffix(".weight") not in layers]
        if lost:
            raise WeightsError(
                f"{path}: is in scaled fp8, but {len(lost)} of its fp8 weights have no scale ({', '.join(sorted(lost)[:3])}); "
                "fetch or convert the file again"
            )


def open_gguf(path: Path, streamed: bool = False) -> WeightsFile:
    if not find_spec("gguf"):
        raise TrainerError(
            f"{path}: is GGUF, and the gguf package is not installed; pip install gguf, or take a .safetensors file"
        )
    import gguf as package

    gguf: Any = package
    try:
        with open(path, "rb") as file:
            if file.read(4) != FIRST:
                raise ValueError("it does not begin with GGUF")
        reader = gguf.GGUFReader(path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        entries = {name: (tensor.tensor_type.name, shape_of(reader, tensor)) for name, tensor in tensors.items()}
        if not tensors:
            raise ValueError("it holds no tensors")
    except Exception as error:  # the package raises whatever numpy does on a file that is cut off or damaged
        raise WeightsError(
            f"{path}: cannot be read as GGUF ({(str(error) or type(error).__name__).splitlines()[0]}); it is cut off, damaged, "
            "or of a type that the installed gguf package does not know: fetch it again, or pip install -U gguf"
        ) from None
    kinds = gguf.GGMLQuantizationType
    stored = {kinds.F32: torch.float32, kinds.F16: torch.float16, kinds.F64: torch.float64, kinds.BF16: torch.bfloat16}
    for name, tensor in tensors.items():
        if tensor.tensor_type not in stored and tensor.tensor_type not in gguf.quants._type_traits:
            raise WeightsError(
                f"{path}: {name} is of the GGUF type {tensor.tensor_type.name}, which the gguf package cannot unpack; "
                "pip install -U gguf, or take another quantisation of the file"
            )

    def read(name: str, dtype: torch.dtype | None) -> Tensor:
        tensor, shape = tensors[name], entries[name][1]
        data = np.asarray(tensor.data)
        if streamed:
            data = np.fromfile(path, data.dtype, data.size, offset=int(tensor.data_offset)).reshape(data.shape)
        if tensor.tensor_type in stored:
            found = torch.from_numpy(data.copy()).view(stored[tensor.tensor_type]).reshape(shape)
            return found if dtype is None else found.to(dtype)
        return torch.from_numpy(gguf.quants.dequantize(data, tensor.tensor_type)).to(dtype or WORK).reshape(shape)

    return WeightsFile(path, entries, frozenset(n for n, t in tensors.items() if t.tensor_type not in stored), read)


def shape_of(reader: Any, tensor: Any) -> tuple[int, ...]:
    """GGUF counts dimensions backwards; converters note the shape of tensors that they had to flatten."""
    noted = reader.get_field(f"comfy.gguf.orig_shape.{tensor.name}")
    shape = tuple(int(noted.parts[i][0]) for i in noted.data) if noted else tuple(int(n) for n in reversed(tensor.shape))
    if math.prod(shape) != int(tensor.n_elements):
        raise ValueError(f"{tensor.name} has {tensor.n_elements} numbers; its noted shape {shape} has others")
    return shape
