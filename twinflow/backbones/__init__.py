"""What is known of each backbone without its weights or its code: one file of data a backbone, found by being there.

Every file here holds one record, BACKBONE.  The file of the same name in nodes/backbones, where there is one, holds ComfyUI's
classes of it, and the one in trainer/backbones what the trainer needs.
"""

import pkgutil
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module

from ..layouts import Layout, bare
from ..lora_names import TEXT_ENCODER, is_part, split
from ..time_embedding import SecondEmbedder

Shapes = Mapping[str, tuple[int, ...]]  # of a transformer's tensors, by diffusers' names
WEIGHT_BIAS = ("weight", "bias")


@dataclass(frozen=True)
class Backbone:
    """name: in the metadata of files.  title: in messages.  models: names on the trainer's command line, each with its
    repository on the hub ("" where there is none), the most common first.

    layout: names in files.  widths: sizes read off the tensors; raises KeyError for those of another model.
    time: where time enters diffusers' class.  native_time: where it enters ComfyUI's, under ComfyUI's names.
    second: the second time embedder's keys, in ComfyUI's names where it has the model.
    native_scale: what ComfyUI multiplies sigma with before its class gets it.
    variant: its files look like another's, so it is never found by their keys.  note: on ComfyUI, for its users.
    others: a key that only another model of the family has, and that model, which there are no TwinFlow weights for.
    modules: those with a weight, by diffusers' names, as a regular expression.
    signed_time: of the released weights, whose files name nothing (see Provenance).  gguf: what ComfyUI-GGUF calls the model.
    pipelines: names of diffusers' classes whose transformer it is, as a regular expression; "" for none.
    """

    name: str
    title: str
    models: Mapping[str, str]
    layout: Layout
    widths: Callable[[Shapes], dict]
    time: SecondEmbedder
    native_time: SecondEmbedder
    second: tuple[str, ...]
    native_scale: float = 1.0
    variant: bool = False
    note: str = ""
    others: Mapping[str, str] = field(default_factory=dict)
    modules: str = ""
    signed_time: bool = True
    gguf: str = ""
    pipelines: str = ""


@cache
def all_backbones() -> dict[str, Backbone]:
    """Every record by its file's name."""
    files = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return {file: import_module(f".{file}", __name__).BACKBONE for file in files}


def models() -> dict[str, str]:
    """Names on the trainer's command line -> the file's name of their backbone."""
    return {name: file for file, backbone in all_backbones().items() for name in backbone.models}


def find(names: Collection[str]) -> Backbone | None:
    """The backbone whose tensors these are (names without prefixes), None for any other."""
    for backbone in all_backbones().values():
        if not backbone.variant and (backbone.layout.native in names or backbone.layout.diffusers in names):
            return backbone
    return None


class Modules:
    """A container of the names that modules of a backbone may have in LoRA files, of any number of blocks: diffusers' and
    ComfyUI's, with dots or underscores between their parts."""

    def __init__(self, record: Backbone):
        self.layout = record.layout
        self.names = re.compile(record.modules + "|" + record.modules.replace(r"\.", "_"))
        native = (re.escape(rule.native).replace(r"\{n\}", r"\d+").replace(r"\*", ".+") for rule in record.layout.rules)
        self.flat = re.compile("|".join(pattern.replace(r"\.", "_") for pattern in native) or r"(?!)")

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        behind = [module for parts in self.layout.names_behind([name]).values() for module, _ in parts]
        known = any(self.names.fullmatch(module) for module in (name, *behind))
        return known or ("." not in name and not name.startswith("lora_") and self.flat.fullmatch(name) is not None)


def of_modules(keys: Iterable[str]) -> list[Backbone]:
    """The backbones, variants left out, that have a module for each key of a LoRA file (text encoders' left out)."""
    keys = [key for key in keys if is_part(key) and not TEXT_ENCODER.search(key)]
    fits = lambda record: all(split(key.replace("_lora.", ".lora_"), Modules(record)) for key in keys)
    return [record for record in all_backbones().values() if keys and not record.variant and record.modules and fits(record)]


def is_second_embedder(key: str) -> bool:
    """Whether the key, with or without a prefix, belongs to some backbone's second time embedder."""
    return bare(key).startswith(_second_roots())


@cache
def _second_roots() -> tuple[str, ...]:
    roots = set()
    for backbone in all_backbones().values():
        roots |= {f"{backbone.time.name}.", f"{backbone.native_time.name}."}
        roots |= {re.sub(r"_2\..*", "_2.", key) for key in backbone.second}
    return tuple(sorted(roots))


def keys(module: str, layers: Iterable[str]) -> tuple[str, ...]:
    """The weights and biases of these layers of a module."""
    return tuple(f"{module}.{layer}.{end}" for layer in layers for end in WEIGHT_BIAS)


def axes(head: int) -> tuple[int, int, int]:
    """How a head's width is shared among three rotary axes where no tensor tells: 2:3:3, the last two even."""
    side = head * 3 // 8
    side -= side % 2
    return head - 2 * side, side, side
