"""GGUF files.  With ComfyUI-GGUF installed the weights stay quantised; else they are unpacked when the file is read.

The `gguf` package is used if it is there (ComfyUI-GGUF brings it); without it a GGUF file is refused with a line.
The file's architecture field is not looked at: repacks of TwinFlow files carry wrong ones, or none, and the keys tell.
"""

import importlib
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..twinflow.gguf_header import UnknownType, read_gguf
from ..twinflow.weights import WeightsError
from .values import WHOLE

NEEDED = ("GGMLOps", "GGUFModelPatcher")  # of ComfyUI-GGUF, to keep weights quantised


@dataclass(frozen=True)
class GgufHeader:
    """entries: key -> (type, shape).  read: the tensors of these keys; keep: which of them may stay quantised."""

    entries: dict[str, tuple[str, tuple[int, ...]]]
    metadata: dict[str, str]
    read: Callable[[list[str], Callable[[str], bool]], dict[str, Tensor]]


def package():
    try:
        return importlib.import_module("gguf")
    except ImportError:
        return None


def quantised_pack():
    """The module that has ComfyUI-GGUF's operations and its patcher, of this pack or of a fork; None where there is none."""
    import nodes as comfy_nodes

    for node in dict(comfy_nodes.NODE_CLASS_MAPPINGS).values():  # pyright: ignore[reportAttributeAccessIssue]  ComfyUI's own nodes, not ours
        module = sys.modules.get(node.__module__)
        if module is not None and all(hasattr(module, name) for name in NEEDED):
            return module
    return None


def read_header(path: str) -> GgufHeader:
    """Raises WeightsError with one line for a file that cannot be read."""
    gguf, name = package(), Path(path).name
    if gguf is None:
        raise WeightsError(
            f"{name}: reading GGUF needs the 'gguf' package: install ComfyUI-GGUF (it brings it), or take the .safetensors file"
        )
    try:
        with suppress(UnknownType):
            read_gguf(path)  # ends where the file ends; the package counts on for as long as a damaged header says
        reader = gguf.GGUFReader(path, "c")  # pages are copied when written to: hooks and patches write to weights in place
    except Exception as error:  # the package raises whatever numpy does on a file that is cut off or damaged
        raise WeightsError(
            f"{name}: cannot be read as GGUF. The file is cut off, damaged, or has a tensor type that the installed 'gguf' "
            f"package does not know: fetch it again, update 'gguf', or take the .safetensors file ({error})"
        ) from None
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    metadata = {key: text for key, f in reader.fields.items() if (text := text_of(gguf, f)) is not None}

    def read(keys: list[str], keep: Callable[[str], bool]) -> dict[str, Tensor]:
        pack = quantised_pack()
        found = {key: read_tensor(gguf, reader, tensors[key], name, pack if keep(key) else None) for key in keys}
        if packed := [t for t in found.values() if is_quantised(t)]:  # ComfyUI-GGUF counts room to unpack the largest
            max(packed, key=lambda t: t.numel()).is_largest_weight = True  # pyright: ignore[reportAttributeAccessIssue]
        return found

    entries = {key: (tensor.tensor_type.name, shape_of(reader, tensor)) for key, tensor in tensors.items()}
    return GgufHeader(entries, metadata, read)


def text_of(gguf, f) -> str | None:
    """A text field's value; numbers and lists are of no use here."""
    if list(f.types) != [gguf.GGUFValueType.STRING]:
        return None
    return bytes(f.parts[f.data[-1]]).decode("utf-8", "replace")


def shape_of(reader, tensor) -> tuple[int, ...]:
    """GGUF counts dimensions backwards; converters note the shape of tensors that they had to flatten."""
    original = reader.get_field(f"comfy.gguf.orig_shape.{tensor.name}")
    if original is not None:
        return tuple(int(original.parts[i][0]) for i in original.data)
    return tuple(int(n) for n in reversed(tensor.shape))


def read_tensor(gguf, reader, tensor, name: str, pack) -> Tensor:
    """pack: ComfyUI-GGUF, where the tensor may stay quantised; else it is unpacked."""
    data = np.asarray(tensor.data)  # numpy's memmap, thousands of times, is slow
    kinds, kind, shape = gguf.GGMLQuantizationType, tensor.tensor_type, shape_of(reader, tensor)
    plain = {kinds.F32: torch.float32, kinds.F16: torch.float16, kinds.F64: torch.float64, kinds.BF16: torch.bfloat16}
    if kind in plain:
        return torch.from_numpy(data).view(plain[kind]).reshape(shape)
    pack = pack if len(shape) > 1 else None
    whole = pack is None or math.prod(shape) <= WHOLE  # of a large one that stays packed a row is looked at
    try:
        values = gguf.quants.dequantize(data if whole else data[:1], kind)
    except NotImplementedError:
        raise WeightsError(
            f"{name}: has weights of the GGUF type {kind.name}, which the 'gguf' package cannot unpack: "
            f"update 'gguf', or take another quantisation of the file ({tensor.name})"
        ) from None
    if not np.isfinite(values).all():
        raise WeightsError(f"{name}: has values that are not numbers: it is damaged, fetch it again ({tensor.name})")
    if pack is None:
        return torch.from_numpy(values).to(torch.bfloat16).reshape(shape)
    ggml = sys.modules[pack.GGMLOps.__module__].GGMLTensor  # not every fork has its operations in a file of their own
    return ggml(torch.from_numpy(data), tensor_type=kind, tensor_shape=torch.Size(shape))


def is_quantised(tensor: Tensor) -> bool:
    """Kept quantised, in ComfyUI-GGUF's tensor class."""
    return getattr(tensor, "tensor_type", None) is not None
