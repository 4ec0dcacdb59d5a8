"""The header of a GGUF file, without any package: its fields, and type and shape of every tensor.

Source: the GGUF specification (ggml-org/ggml, docs/gguf.md), versions 2 and 3.
"""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .atomic import write_atomically
from .weights import WeightsError

MAGIC = b"GGUF"
ARCHITECTURE, ALIGNMENT = "general.architecture", "general.alignment"
NUMBERS = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}  # of fields' types, as struct names them
TEXT, LIST = 8, 9
# ggml's types: name, numbers in a block, bytes of a block
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
BLOCK = 1 << 22


@dataclass
class Gguf:
    """fields: by name; lists as lists.  spans: where each field stands in the file, name and all.  tensors: name -> (type,
    shape), shapes as torch counts them.  infos: where the tensors' list stands.  data: where their numbers begin."""

    path: Path
    version: int
    fields: dict[str, Any]
    spans: dict[str, tuple[int, int]]
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    infos: tuple[int, int]
    data: int

    @property
    def architecture(self) -> str:
        return str(self.fields.get(ARCHITECTURE, ""))

    @property
    def alignment(self) -> int:
        return int(self.fields.get(ALIGNMENT, 32))


class UnknownType(WeightsError):
    """The file may be sound: it has a type that is younger than this reader."""


class Cursor:
    def __init__(self, file: BinaryIO):
        self.file, self.size = file, os.fstat(file.fileno()).st_size

    def number(self, form: str) -> Any:
        size = struct.calcsize("<" + form)
        read = self.file.read(size)
        if len(read) < size:
            raise ValueError("it ends within its header")
        return struct.unpack("<" + form, read)[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > self.size - self.file.tell():
            raise ValueError("it ends within its header")
        read = self.file.read(length)
        if len(read) < length:
            raise ValueError("it ends within its header")
        return read.decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            inner, count = self.number("I"), self.number("Q")
            if inner == LIST:
                raise ValueError("a list of lists")
            return [self.value(inner) for _ in range(count)]
        return self.number(NUMBERS[kind])


def read_gguf(path: str | os.PathLike) -> Gguf:
    """The header, checked against the file's size; no tensor is read.  Raises WeightsError."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _parsed(path, file)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); expected a .gguf file") from None
    except KeyError as error:
        told = f"{path}: cannot be read as GGUF (a type {error} that is not known): it is cut off or damaged, fetch it again"
        raise UnknownType(told) from None
    except (ValueError, OverflowError, MemoryError) as error:
        raise WeightsError(f"{path}: cannot be read as GGUF ({error}): it is cut off or damaged, fetch it again") from None


def _parsed(path: Path, file: BinaryIO) -> Gguf:
    if file.read(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    cursor, fields, spans, tensors, ends = Cursor(file), {}, {}, {}, 0
    version, count, named = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}; expected 2 or 3")
    for _ in range(named):
        begin, name = file.tell(), cursor.text()
        fields[name] = cursor.value(cursor.number("I"))
        spans[name] = (begin, file.tell())
    begin = file.tell()
    for _ in range(count):
        name = cursor.text()
        shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))[::-1]
        kind, block, size = TYPES[cursor.number("I")]
        ends = max(ends, cursor.number("Q") + math.prod(shape) // block * size)
        noted = fields.get(f"comfy.gguf.orig_shape.{name}")
        tensors[name] = (kind, tuple(noted) if noted else shape)
    found = Gguf(path, version, fields, spans, tensors, (begin, file.tell()), 0)
    found.data = -(-file.tell() // found.alignment) * found.alignment
    if not tensors:
        raise ValueError("it holds no tensors")
    if found.data + ends > os.fstat(file.fileno()).st_size:
        raise ValueError(f"it has {os.fstat(file.fileno()).st_size} bytes; its header promises {found.data + ends}")
    return found


def with_architecture(found: Gguf, architecture: str, path: str | os.PathLike) -> None:
    """A copy of the file that says so, atomically; all other fields and every number are the same bytes."""
    text = lambda value: struct.pack("<Q", len(value.encode())) + value.encode()
    own = text(ARCHITECTURE) + struct.pack("<I", TEXT) + text(architecture)

    def write(temporary: str) -> None:
        with open(found.path, "rb") as source, open(temporary, "wb") as out:
            kept = [span for name, span in found.spans.items() if name != ARCHITECTURE]
            out.write(MAGIC + struct.pack("<IQQ", found.version, len(found.tensors), len(kept) + 1) + own)
            for begin, end in [*kept, found.infos]:
                source.seek(begin)
                out.write(source.read(end - begin))
            out.write(b"\0" * (-out.tell() % found.alignment))
            source.seek(found.data)
            while block := source.read(BLOCK):
                out.write(block)

    write_atomically(path, write)
