"""The state of sharded training (FSDP2) as a folder: torch.distributed.checkpoint's files, each process writing its own part.

No process ever holds more than its part and one tensor; any number of processes reads what any other wrote.  A folder has
its name only when it is whole.
"""

import os
import pickle
import pickletools
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, distributed
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from twinflow.atomic import flush_folder, write_json
from twinflow.plain_json import loads
from twinflow.weights import WeightsError

from ..tensors import sharding
from . import disk

ABOUT = "about.json"
FILE = r"__[0-9]+_[0-9]+\.distcp"  # of one process


class Writer(dcp.FileSystemWriter):
    """torch's, but for what it keeps: until a file is closed it holds all tensors of it on the host."""

    def write_data(self, plan, planner) -> Future[list[WriteResult]]:
        name, results = f"__{distributed.get_rank()}_0.distcp", []
        with open(Path(self.path, name), "wb") as file:
            for item in plan.items:
                begin, tensor = file.tell(), cast(Tensor, planner.resolve_data(item)).detach().cpu()
                whole = tensor.numel() * tensor.itemsize == tensor.untyped_storage().nbytes()
                try:
                    torch.save(tensor if whole else tensor.clone(), file)  # never more than is meant
                except RuntimeError as error:  # of torch's own, about what was not written
                    raise error.__context__ if isinstance(error.__context__, OSError) else error from None
                length = file.tell() - begin
                results.append(WriteResult(item.index, length, filesystem._StorageInfo(name, begin, length)))
            file.flush()
            os.fsync(file.fileno())
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done


class Unpickler(pickle.Unpickler):
    """Of a checkpoint's table of contents, which torch pickles: its own records and torch's dtypes, and no code."""

    def find_class(self, module: str, name: str) -> Any:
        records = (metadata.__name__, filesystem.__name__)
        if module in records or module == "torch" or (module, name) in NAMED:
            found = super().find_class(module, name)
            own = isinstance(found, type) and found.__module__ == module in records
            if own or isinstance(found, torch.dtype) or (module, name) in NAMED:
                return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


NAMED = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch._utils", "_get_restore_location"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}


def table_of(data: bytes) -> metadata.Metadata:
    """A checkpoint's table of contents.  Raises ValueError for what is none, before it takes more memory than it has bytes."""
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):  # which reads no more than is there
            if opcode.name == "FRAME" and int(argument or 0) > len(data):
                raise ValueError("it is cut off")
            if "PUT" in opcode.name and int(argument or 0) > count:  # pickle makes room for all numbers below
                raise ValueError(f"it counts to {argument}")
        found = Unpickler(BytesIO(data)).load()
        _check(found)
        return found
    except Exception as error:  # pickle raises anything, and records may lack what they are made of
        raise ValueError(str(error)) from None


def _check(table: Any) -> None:
    """Raises ValueError, or AttributeError, for a table whose parts are not what torch writes."""
    if not isinstance(table, metadata.Metadata):
        raise ValueError("it is no table")
    whole = lambda numbers: isinstance(numbers, tuple) and all(type(n) is int and 0 <= n < 2**48 for n in numbers)
    tensors, parts = table.state_dict_metadata, table.storage_data
    if not isinstance(tensors, dict) or not isinstance(parts, dict):
        raise ValueError("it has no tensors")
    for name, own in tensors.items():
        if isinstance(own, metadata.BytesStorageMetadata):
            continue
        fits = isinstance(name, str) and isinstance(own, metadata.TensorStorageMetadata) and whole(own.size)
        fits = fits and isinstance(own.properties, metadata.TensorProperties)
        fits = fits and isinstance(own.properties.dtype, torch.dtype) and isinstance(own.chunks, list)
        if not fits or not all(
            isinstance(chunk, metadata.ChunkStorageMetadata)
            and whole(chunk.offsets) and whole(chunk.sizes) and len(chunk.offsets) == len(chunk.sizes) == len(own.size)
            for chunk in own.chunks
        ):  # fmt: skip
            raise ValueError(f"{name!r} is no tensor")
    for index, part in parts.items():
        fits = isinstance(index, metadata.MetadataIndex) and isinstance(part, filesystem._StorageInfo)
        if not (fits and isinstance(part.relative_path, str) and re.fullmatch(FILE, part.relative_path)):
            raise ValueError("it names another file than its own")
        if not whole((part.offset, part.length)):
            raise ValueError(f"a part of {part.relative_path} begins nowhere")


class Reader(dcp.FileSystemReader):
    """torch's, of a table that is read and checked already."""

    def __init__(self, path: Path, table: metadata.Metadata):
        super().__init__(path)
        self.table = table

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        return self.table


def write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], say: Callable[[str], object]) -> None:
    """Every process its parts of the tensors.  Raises OSError in all of them where one fails."""
    temporary = path.with_name(f".{path.name}.tmp")

    def begin() -> None:
        remove(temporary)
        disk.room(path, disk.size_of(tensors.values()), say)
        temporary.mkdir()

    def end() -> None:
        write_json(about, temporary / ABOUT)
        remove(path)
        os.replace(temporary, path)
        flush_folder(path.parent)

    try:
        sharding.on_main(begin)
        dcp.save(dict(tensors), storage_writer=Writer(temporary))
        sharding.on_main(end)
    except dcp.CheckpointException as error:
        rank, (fault, _) = next(iter(error.failures.items()))
        if not isinstance(fault, OSError):
            raise fault from error
        raise OSError(f"{fault.strerror or fault}, in process {rank}") from None
    finally:
        if distributed.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)


def remove(folder: Path) -> None:
    """Never to be seen half."""
    if folder.exists():
        gone = folder.with_name(f".{folder.name.strip('.')}.old")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def about_of(text: str) -> dict[str, Any]:
    """What a checkpoint says of itself (see checkpoint.write).  Raises ValueError."""
    about = loads(text)
    if not isinstance(about, dict):
        raise ValueError("what it says of itself is no object")
    whole = lambda name, least=0: type(about.get(name, least)) is int and about.get(name, least) >= least
    decays = about.get("decays", {})
    fits = {
        "step": "step" in about and whole("step"),
        "skipped": "skipped" in about and whole("skipped"),
        "seconds": type(about.get("seconds")) in (int, float),
        "decays": isinstance(decays, dict) and all(type(x) in (int, float) and 0 <= x < 1 for x in decays.values()),
        "processes": whole("processes", 1),
        "model": isinstance(about.get("model", ""), str),
    }
    if wrong := [name for name, fit in fits.items() if not fit]:
        raise ValueError(f"its {wrong[0]} is {about.get(wrong[0])!r}")
    return {"decays": {}} | about


class Folder:
    """A checkpoint that write() left.  about: what it was given.  shapes: of its tensors by name.  Raises WeightsError."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.about = about_of((path / ABOUT).read_text("utf-8"))
            self.table = table_of((path / ".metadata").read_bytes())
            tensors = self.table.state_dict_metadata.items()
            self.shapes = {n: tuple(m.size) for n, m in tensors if isinstance(m, metadata.TensorStorageMetadata)}
            for part in self.table.storage_data.values():
                size, wanted = (path / part.relative_path).stat().st_size, part.offset + part.length
                if size < wanted:
                    raise WeightsError(f"{part.relative_path} has {size} bytes of {wanted}: it is cut off")
        except WeightsError:
            raise
        except (OSError, ValueError) as error:
            raise WeightsError(f"{getattr(error, 'strerror', None) or error}") from None

    def read(self, into: Mapping[str, Tensor]) -> None:
        """Copy the tensors of these names.  Every process must call it alike, where they are sharded."""
        alone = not any(isinstance(tensor, sharding.DTensor) for tensor in into.values())
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is meant to be
                dcp.load({n: t.detach() for n, t in into.items()}, storage_reader=Reader(self.path, self.table), no_dist=alone)
        except dcp.CheckpointException as error:
            fault, _ = next(iter(error.failures.values()))
            raise WeightsError(f"{getattr(fault, 'strerror', None) or fault}") from None
