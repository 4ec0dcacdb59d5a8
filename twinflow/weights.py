"""Weights on disk: safetensors only, written atomically, read with one clear line for every fault.

The metadata of our files name their time conditioning and how to sample with them (see Provenance).
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import __version__
from .atomic import write_atomically
from .plain_json import loads, one_line
from .presets import Sampling
from .time_embedding import TIME_RULES


class WeightsError(ValueError):
    """A weights file that cannot be used; the message, one line, names the file, what was found and what to do."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class Header(NamedTuple):
    """What a safetensors file says of itself: its metadata, and the dtype and shape of every tensor by name."""

    metadata: dict[str, str]
    tensors: dict[str, tuple[str, tuple[int, ...]]]


def read_header(path: str | os.PathLike) -> Header:
    """The header of a safetensors file, checked against the file's size; no tensor is read.  Raises WeightsError."""
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, 100_000_000):
                raise WeightsError(f"{path}: not a safetensors file, or cut off in its header ({size} bytes): fetch it again")
            entries = loads(file.read(length))
        if not isinstance(entries, dict):
            raise ValueError(f"is a {type(entries).__name__}; expected an object")
        metadata = entries.pop("__metadata__", {})
        if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
            raise ValueError("its metadata are not texts by name")
        for name, entry in entries.items():
            _check_entry(name, entry)
        tensors = {name: (e["dtype"], tuple(e["shape"])) for name, e in entries.items()}
        ends = max((e["data_offsets"][1] for e in entries.values()), default=0)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); expected a .safetensors file") from None
    except ValueError as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: the safetensors header is damaged ({error}): fetch or write the file again") from None
    if 8 + length + ends != size:
        raise WeightsError(
            f"{path}: has {size} bytes; its header promises {8 + length + ends}: the file is cut off, fetch it again"
        )
    return Header(metadata, tensors)


def _check_entry(name: str, entry: object) -> None:
    """Of a header.  Raises ValueError."""
    whole = lambda values: isinstance(values, list) and all(type(n) is int and 0 <= n < 2**63 for n in values)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets")
    if not isinstance(entry["dtype"], str) or len(entry["dtype"]) > 16:
        raise ValueError(f"{name!r} has no dtype")
    if not whole(entry["shape"]):
        raise ValueError(f"{name!r} has no shape of whole numbers")
    if not whole(ends := entry["data_offsets"]) or len(ends) != 2 or ends[0] > ends[1]:
        raise ValueError(f"{name!r} has no place in the file")


def shards(path: str | os.PathLike) -> list[Path]:
    """All files of a model that is cut into name-00001-of-00009.safetensors and so on, any of which stands for all; else the
    path alone.  Raises WeightsError where some are missing."""
    path = Path(path)
    cut = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})(\.[a-z]+)", path.name)
    if not cut:
        return [path]
    every = [path.with_name(f"{cut[1]}-{i:05}-of-{cut[2]}{cut[3]}") for i in range(1, int(cut[2]) + 1)]
    if missing := [shard.name for shard in every if not shard.is_file()]:
        lacks = f"{len(missing)} of its {len(every)} shards are not beside it: {', '.join(missing[:3])}"
        raise WeightsError(f"{path}: {lacks}. Fetch them")
    return every


def load(path: str | os.PathLike, names: Iterable[str] | None = None, *, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file, all or only those named.  Raises WeightsError; a missing name is one, too."""
    header = read_header(path)
    names = list(header.tensors if names is None else names)
    missing = [name for name in names if name not in header.tensors]
    if missing:
        raise WeightsError(f"{path}: has no tensor {missing[0]!r} (and {len(missing) - 1} more of {len(names)} asked for)")
    try:
        with safe_open(path, "pt", device=device) as file:
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise WeightsError(f"{path}: cannot be read as safetensors ({error})") from None


def save(tensors: Mapping[str, Tensor], path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors (made contiguous, in their dtype, on the CPU) and metadata, atomically; the folder must exist.

    The same content gives the same bytes (the library's own writer puts metadata in any order).  Raises OSError where the
    disk is full or otherwise unwilling.
    """
    save_streamed(tensors, (tensors[name] for name in file_order(tensors)), path, metadata)


# as the safetensors library sorts them, widest first, so that all are aligned
KINDS = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL")
DTYPES = dict(
    zip(
        (
            torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16, torch.int16,
            torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool,
        ),
        KINDS,
    )
)  # fmt: skip


def file_order(outlines: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors in the order that they have in a safetensors file."""
    return sorted(outlines, key=lambda name: (KINDS.index(DTYPES[outlines[name].dtype]), name.encode()))


def save_streamed(
    outlines: Mapping[str, Tensor],
    tensors: Iterable[Tensor],
    path: str | os.PathLike,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """What save() does, one tensor in memory at a time.

    outlines: shapes and dtypes by name, on any device, meta too.  tensors: their values in file_order.
    """
    entries, end = {}, 0
    for name in file_order(outlines):
        begin, outline = end, outlines[name]
        end += outline.numel() * outline.element_size()
        entries[name] = {"dtype": DTYPES[outline.dtype], "shape": [*outline.shape], "data_offsets": [begin, end]}
    about = {"__metadata__": {"format": "pt", **(metadata or {})}}
    header = json.dumps(about | entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)

    def write(temporary: str) -> None:
        with open(temporary, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for (name, outline), tensor in zip(((n, outlines[n]) for n in entries), tensors, strict=True):
                if (tensor.shape, tensor.dtype) != (outline.shape, outline.dtype):
                    raise ValueError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}; expected {tuple(outline.shape)}")
                file.write(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data)

    write_atomically(path, write)


@dataclass(frozen=True)
class Provenance:
    """The `twinflow.*` metadata of a weights file.

    time: "two" (a second time embedder (t, r) is in the file) or "fold" (the model is asked at t - r / 2).  base_model: the
    backbone that it was trained from.  rank: of the LoRA, None for full weights.  sampler: recommended settings, best first.
    signed_time: whether the time embedder was trained with the sign of the time (see SecondEmbedder.times).
    init: the file that training started from, by name and hash; "" where there was none.
    license: of the weights, where their maker has said one.  trigger: words that stood before each caption.
    """

    time: str
    base_model: str
    rank: int | None = None
    sampler: tuple[Sampling, ...] = ()
    step: int = 0
    config_hash: str = ""
    signed_time: bool = True
    init: str = ""
    license: str = ""
    trigger: str = ""

    def to_metadata(self) -> dict[str, str]:
        values = {
            "twinflow.version": __version__,
            "twinflow.time": self.time,
            "twinflow.base_model": self.base_model,
            "twinflow.sampler": json.dumps([s.to_json() for s in self.sampler]),
            "twinflow.step": str(self.step),
            "twinflow.config_hash": self.config_hash,
            "twinflow.signed_time": str(self.signed_time).lower(),
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": self.base_model + ("/lora" if self.rank else ""),
            "modelspec.title": f"TwinFlow {self.base_model}",
            "modelspec.implementation": "twinflow",
        }
        some = {"twinflow.rank": str(self.rank or ""), "twinflow.init": self.init, "modelspec.license": self.license}
        some["modelspec.trigger_phrase"] = self.trigger
        return values | {name: value for name, value in some.items() if value}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Provenance | None":
        """None for a file that is not ours.  Raises WeightsError where ours says something that has no meaning."""
        if "twinflow.time" not in metadata:
            return None
        get = metadata.get
        try:
            if get("twinflow.time") not in TIME_RULES:
                raise ValueError(f"twinflow.time is {get('twinflow.time')!r}; expected one of {', '.join(TIME_RULES)}")
            sampler = loads(get("twinflow.sampler", "[]"))
            return cls(
                time=metadata["twinflow.time"],
                base_model=get("twinflow.base_model", ""),
                rank=int(rank) if (rank := get("twinflow.rank")) else None,
                sampler=tuple(Sampling.from_json(s) for s in (sampler if isinstance(sampler, list) else [sampler])),
                step=int(get("twinflow.step", "0")),
                config_hash=get("twinflow.config_hash", ""),
                signed_time={"true": True, "false": False}[get("twinflow.signed_time", "true")],  # our first files lack it
                init=get("twinflow.init", ""),
                license=get("modelspec.license", ""),
                trigger=get("modelspec.trigger_phrase", ""),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise WeightsError(f"the file's twinflow metadata cannot be used: {error}") from None


def dtype_of(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that most of the numbers have."""
    count: dict[torch.dtype, int] = {}
    for t in tensors.values():
        count[t.dtype] = count.get(t.dtype, 0) + t.numel()
    return max(count, key=lambda dtype: count[dtype])
