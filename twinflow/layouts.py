"""Names in files: one table of rules a backbone, between diffusers' names and those of ComfyUI's own class ("native").

ComfyUI fuses q, k and v, or a gate and what it gates, renames most modules, and orders SD3.5's final scale and shift the other
way round.  Whole checkpoints go both ways, bit for bit; LoRAs use the same places.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "extended_weights.", "pipe.dit.", "module.")


class Part(NamedTuple):
    """The rows of a fused module that one of those behind it has: the number-th, from 0, of `of` equal parts."""

    number: int
    of: int

    def rows(self, total: int) -> tuple[int, int]:
        """(first, count) of all rows of the fused module."""
        size = total // self.of
        return self.number * size, size


class Rule(NamedTuple):
    """The modules `diffusers` are `native` in ComfyUI.  {n} stands for a number, * for any text, the same on both sides.

    part: which rows of the native module, where it is fused.  swapped: the two halves of its output are exchanged; "last": in
    the block of the highest number {n} only.
    """

    diffusers: str
    native: str
    part: Part | None = None
    swapped: bool | Literal["last"] = False


class Parameter(NamedTuple):
    """A whole key in both layouts, with {n} and * as in rules.  rows: of a table that is flat in ComfyUI's."""

    diffusers: str
    native: str
    rows: int = 0


class Place(NamedTuple):
    """Where a diffusers module lies: the native module, which part of it or None for all, halves exchanged or not."""

    module: str
    part: Part | None = None
    swapped: bool = False


@dataclass(frozen=True)
class Layout:
    """native, diffusers: a key that only files in this layout have.  parameters: whole keys that differ.

    ranks: how many dimensions tensors have, under ComfyUI's names, whose leading 1 ggml's writers drop.
    older: ends of ComfyUI's names in older files, and what they are now.
    """

    native: str
    diffusers: str
    rules: tuple[Rule, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    ranks: tuple[tuple[str, int], ...] = ()
    older: tuple[tuple[str, str], ...] = ()

    def current(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors with the ends that names have now."""
        for before, now in self.older:
            tensors = {key.removesuffix(before) + now if key.endswith(before) else key: t for key, t in tensors.items()}
        return tensors

    def is_whole(self, module: str, last: int) -> bool:
        """Whether a diffusers module is all of its native one, in the same order, so that only its name changes."""
        place = self.place(module, last)
        return place is None or (place.part is None and not place.swapped)

    def place(self, module: str, last: int) -> Place | None:
        """Of a diffusers module; None where the name is the same in both.  last: number of the last block."""
        for rule in self.rules:
            if match := _pattern(rule.diffusers).fullmatch(module):
                return Place(_filled(rule.native, match), rule.part, _is_swapped(rule, match, last))
        return None

    def to_native(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under ComfyUI's names; those that have them already stay as they are.

        Raises ValueError where a part of a fused module is missing.
        """
        out: dict[str, Tensor] = {}
        fused: dict[str, dict[Part, Tensor]] = {}
        tensors = self.current(tensors)
        last = last_block(tensors)
        for key, tensor in tensors.items():
            module, dot, end = key.rpartition(".")
            name, parameter = self._whole(key, "diffusers", "native")
            to = self.place(module, last) if dot and parameter is None else None
            if to is None:
                out[name] = tensor.flatten() if parameter and parameter.rows else tensor
            elif to.part is None:
                out[f"{to.module}.{end}"] = exchanged(tensor) if to.swapped else tensor
            else:
                fused.setdefault(f"{to.module}.{end}", {})[to.part] = tensor
        for key, parts in fused.items():
            if len(parts) != (many := next(iter(parts)).of):
                raise ValueError(f"{key} is made of {many} parts, but the file has {len(parts)} of them: it is not complete")
            out[key] = torch.cat([parts[part] for part in sorted(parts)])
        for key, rank in self.ranks:
            if key in out:
                out[key] = out[key].reshape(*[1] * (rank - out[key].ndim), *out[key].shape)
        return out

    def to_diffusers(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of to_native: the tensors under diffusers' names; those that have them already stay as they are."""
        out: dict[str, Tensor] = {}
        tensors = self.current(tensors)
        behind = self.names_behind(key.rpartition(".")[0] for key in tensors)
        lifted = dict(self.ranks)
        lifted |= {self.in_diffusers(native): rank for native, rank in self.ranks}
        for key, tensor in tensors.items():
            module, _, end = key.rpartition(".")
            if key in lifted:
                tensor = tensor.reshape(*[1] * (lifted[key] - tensor.ndim), *tensor.shape)
            if module not in behind:
                name, parameter = self._whole(key, "native", "diffusers")
                out[name] = tensor.reshape(parameter.rows, -1) if parameter and parameter.rows else tensor
                continue
            for name, place in behind[module]:
                part = tensor.narrow(0, *place.part.rows(tensor.shape[0])) if place.part else tensor
                out[f"{name}.{end}"] = exchanged(part) if place.swapped else part
        return out

    def from_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of any file under diffusers' names: prefixes off, other parts of a whole checkpoint left out."""
        inside = PREFIXES[0]
        whole = any(name.startswith(inside) for name in tensors)
        return self.to_diffusers({bare(name): t for name, t in tensors.items() if name.startswith(inside) or not whole})

    def in_diffusers(self, native: str) -> str:
        """The key that is whole in both."""
        module, _, end = native.rpartition(".")
        behind = self.names_behind([module]).get(module)
        return f"{behind[0][0]}.{end}" if behind else self._whole(native, "native", "diffusers")[0]

    def is_parameter(self, native: str) -> bool:
        """Whether this key of ComfyUI's is one of `parameters`."""
        return self._whole(native, "native", "diffusers")[1] is not None

    def _whole(self, key: str, one: str, other: str) -> tuple[str, Parameter | None]:
        """Its name in the other layout, and what says so; itself and None where nothing does."""
        for parameter in self.parameters:
            if match := _pattern(getattr(parameter, one)).fullmatch(key):
                return _filled(getattr(parameter, other), match), parameter
        return key, None

    def names_behind(self, native: Iterable[str]) -> dict[str, list[tuple[str, Place]]]:
        """The diffusers modules (one, or several parts) that make up each of these native modules, where their names differ."""
        native = dict.fromkeys(native)
        last, behind = last_block(native), {}
        for module in native:
            for rule in self.rules:
                if match := _pattern(rule.native).fullmatch(module):
                    place = Place(module, rule.part, _is_swapped(rule, match, last))
                    behind.setdefault(module, []).append((_filled(rule.diffusers, match), place))
        return behind


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{n\}", r"(\d+)").replace(r"\*", "(.+)"))


def _filled(template: str, match: re.Match[str]) -> str:
    found = iter(match.groups())
    return re.sub(r"\{n\}|\*", lambda _: next(found), template)


def _is_swapped(rule: Rule, match: re.Match[str], last: int) -> bool:
    return int(match[1]) == last if rule.swapped == "last" else rule.swapped


def exchanged(tensor: Tensor) -> Tensor:
    """Scale and shift the other way round, along the output dimension."""
    return torch.cat(tensor.chunk(2)[::-1])


def last_block(names: Iterable[str]) -> int:
    """The highest number of a block: of the first number in a name."""
    return max((int(m[1]) for name in names if (m := re.match(r"[a-z_]+\.(\d{1,6})\.", name))), default=-1)


def fused(diffusers: str, native: str) -> tuple[Rule, ...]:
    """q, k and v in one native module; $ stands for their letter in `diffusers`."""
    return tuple(Rule(diffusers.replace("$", letter), native, Part(i, 3)) for i, letter in enumerate("qkv"))


def bare(key: str) -> str:
    """The key without the prefixes that files put before it, and without torch.compile's, wherever it stands."""
    key = key.replace("_orig_mod.", "")
    while prefix := next((p for p in PREFIXES if key.startswith(p)), None):
        key = key[len(prefix) :]
    return key


def blocks(names: Iterable[str], key: str) -> int:
    """How many numbered blocks there are: key has {} in place of the number."""
    names, n = set(names), 0
    while key.format(n) in names:
        n += 1
    return n
