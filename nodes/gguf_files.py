"""GGUF files.  With ComfyUI-GGUF installed the weights stay quantised; else they are unpacked when the file is read.

The `gguf` package is used if it is there (ComfyUI-GGUF brings it); without it a GGUF file is refused with a line.
The file's architecture field is not looked at: repacks of TwinFlow files carry wrong ones, and the keys tell.
"""

import importlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..twinflow.weights import WeightsError


@dataclass(frozen=True)
class GgufHeader:
    dtypes: dict[str, str]
    metadata: dict[str, str]
    read: Callable[[list[str]], dict[str, Tensor]]


def package():
    try:
        return importlib.import_module("gguf")
    except ImportError:
        return None


def quantised_pack():
    """The module of ComfyUI-GGUF that has its operations and its patcher, where it is installed; else None."""
    import nodes as comfy_nodes

    loader = comfy_nodes.NODE_CLASS_MAPPINGS.get("UnetLoaderGGUF")  # pyright: ignore[reportAttributeAccessIssue]  ComfyUI's own nodes, not ours
    module = loader and sys.modules.get(loader.__module__)
    if module is None or not hasattr(module, "GGMLOps") or not hasattr(module, "GGUFModelPatcher"):
        return None
    return module


def read_header(path: str) -> GgufHeader:
    gguf = package()
    if gguf is None:
        raise WeightsError(
            f"{path}: reading GGUF needs the 'gguf' package: install ComfyUI-GGUF (it brings it), or take the .safetensors file"
        )
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # the package raises whatever numpy does on a file that is cut off or damaged
        raise WeightsError(
            f"{path}: cannot be read as GGUF ({type(error).__name__}: {error}). The file is cut off, damaged, or has a tensor "
            "type that the installed 'gguf' package does not know: fetch it again, update 'gguf', or take the .safetensors file"
        ) from None
    entries = {tensor.name: tensor for tensor in reader.tensors}
    metadata = {name: text for name, f in reader.fields.items() if (text := text_of(gguf, f)) is not None}

    def read(keys: list[str], unpack: bool = False) -> dict[str, Tensor]:
        return {key: read_tensor(gguf, reader, entries[key], path, unpack) for key in keys}

    return GgufHeader({name: t.tensor_type.name for name, t in entries.items()}, metadata, read)


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


def read_tensor(gguf, reader, tensor, path: str, unpack: bool) -> Tensor:
    kinds, kind, shape = gguf.GGMLQuantizationType, tensor.tensor_type, shape_of(reader, tensor)
    plain = {kinds.F32: torch.float32, kinds.F16: torch.float16, kinds.F64: torch.float64, kinds.BF16: torch.bfloat16}
    if kind in plain:
        return mapped(tensor.data).view(plain[kind]).reshape(shape)
    pack = None if unpack or len(shape) < 2 else quantised_pack()
    try:
        values = gguf.quants.dequantize(tensor.data if pack is None else tensor.data[:1], kind)
    except NotImplementedError:
        raise WeightsError(
            f"{path}: tensor {tensor.name!r} has the GGUF type {kind.name}, which the 'gguf' package cannot unpack: "
            "update 'gguf', or take another quantisation of the file"
        ) from None
    if pack is None:
        return torch.from_numpy(values).to(torch.bfloat16).reshape(shape)
    ggml = importlib.import_module(".ops", pack.__package__).GGMLTensor
    return ggml(mapped(tensor.data), tensor_type=kind, tensor_shape=torch.Size(shape))


def mapped(data) -> Tensor:
    """The file's own memory, uncopied; nobody writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(data)


def is_quantised(tensor: Tensor) -> bool:
    """Kept quantised, in ComfyUI-GGUF's tensor class."""
    return getattr(tensor, "tensor_type", None) is not None
