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
    repository on the hub ("" where there is none), the most common first.  aliases: other names for those, beside the
    repositories themselves.

    layout: names in files.  widths: sizes read off the tensors; raises KeyError for those of another model.
    time: where time enters diffusers' class.  native_time: where it enters ComfyUI's, under ComfyUI's names.
    second: the second time embedder's keys, in ComfyUI's names where it has the model.
    native_scale: what ComfyUI multiplies sigma with before its class gets it.
    variant: its files look like another's, so it is never found by their keys.  note: on ComfyUI, for its users.
    others: a key that only another model of the family has, and that model, which there are no TwinFlow weights for.
    modules: those with a weight, by diffusers' names, as a regular expression.  stock: prefixes of such names that ComfyUI's
    stock LoRA loader takes; unnamed: those of the modules that it takes by ComfyUI's own names alone.
    gguf: what ComfyUI-GGUF calls the model; "" where ComfyUI has none.
    signed_time: of the released weights, whose files name nothing (see Provenance).
    still: it takes one frame alone, though its latents have a time axis in ComfyUI.
    uncalled: parts of ComfyUI's network, in some versions, that it never calls, and that no file holds.
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
    stock: tuple[str, ...] = ()
    unnamed: str = ""
    signed_time: bool = True
    gguf: str = ""
    still: bool = False
    uncalled: tuple[str, ...] = ()
    pipelines: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)


@cache
def all_backbones() -> dict[str, Backbone]:
    """Every record by its file's name."""
    files = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return {file: import_module(f".{file}", __name__).BACKBONE for file in files}


def models() -> dict[str, str]:
    """Names on the trainer's command line -> the file's name of their backbone."""
    return {name: file for file, backbone in all_backbones().items() for name in backbone.models}


@cache
def _other_names() -> dict[str, str]:
    found: dict[str, str] = {}
    for backbone in all_backbones().values():
        found |= backbone.aliases
        for name, repository in backbone.models.items():
            if repository:
                found.setdefault(repository.lower(), name)  # of several with one repository the first is meant
    return found


def canonical(name: str) -> str:
    """The model's name on the command line that an alias or a repository on the hub stands for; any other as it is."""
    return name if name in models() else _other_names().get(name.lower(), name)


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
        def of(names: Iterable[str]) -> str:
            found = (re.escape(name).replace(r"\{n\}", r"\d+").replace(r"\*", ".+") for name in names)
            return "|".join(found) or r"(?!)"

        both = lambda pattern: (re.compile(pattern), re.compile(pattern.replace(r"\.", "_")))  # with dots, with underscores
        self.layout, rules = record.layout, record.layout.rules
        self.diffusers, self.native = both(record.modules), both(of(rule.native for rule in rules))
        self.renamed, self.unnamed = both(of(rule.diffusers for rule in rules)), both(record.unnamed)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(self.sides(name) + self.sides(name, flat=True))

    def sides(self, name: str, flat: bool = False) -> tuple[bool, bool]:
        """Whether it is one of diffusers' names, and whether it is one of ComfyUI's.  flat: with underscores."""
        own = self.diffusers[flat].fullmatch(name) is not None
        native = self.native[flat].fullmatch(name) is not None and (
            not name.startswith("lora_") if flat else self._is_native(name)
        )
        return own, native or (own and not self.renamed[flat].fullmatch(name))

    def in_stock(self, name: str, flat: bool = False) -> bool:
        """Whether ComfyUI's stock LoRA loader knows it by diffusers' name."""
        return self.sides(name, flat)[0] and not self.unnamed[flat].fullmatch(name)

    def _is_native(self, name: str) -> bool:
        behind = self.layout.names_behind([name]).get(name, [])
        return any(self.diffusers[0].fullmatch(module) for module, _ in behind)


def of_modules(keys: Iterable[str]) -> list[Backbone]:
    """The backbones, variants left out, that have a module for each key of a LoRA file (text encoders' left out)."""
    keys = [key.replace("_lora.", ".lora_") for key in keys if is_part(key) and not TEXT_ENCODER.search(key)]
    known = [(record, Modules(record)) for record in all_backbones().values() if not record.variant and record.modules]
    return [record for record, modules in known if keys and all(split(key, modules) for key in keys)]


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
