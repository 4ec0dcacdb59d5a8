"""Few-step LoRAs of others, which name no settings themselves: how their publishers sample with them.

Ours are in known_files.json, each with its source.  A user's own stand in a file of the same form beside the LoRA, and come
first.  That file may be anybody's: it holds data and wildcards only, and of a damaged one a line is said.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from .backbones import all_backbones, of_modules
from .plain_json import loads
from .presets import Sampling

OURS, THEIRS = Path(__file__).with_suffix(".json"), "twinflow_known_files.json"
TITLES = "modelspec.title", "ss_output_name"  # metadata that keep a file's name when it is renamed
MOST, LONGEST = 1 << 18, 200  # bytes of a list, characters of a text

Models = Callable[[], Collection[str]]


@dataclass(frozen=True)
class KnownFile:
    """names: wildcards for the file's name or its metadata's title, words and numbers compared.  metadata, keys: wildcards for
    values by name, and for some tensor's name.  model: the backbone whose modules the LoRA has.  All that are given must fit.

    steps, sigmas or shift (1 noise, 0 data; evenly spaced times shifted), strength, cfg: as recommended, None where nothing is.
    """

    title: str
    steps: int
    names: tuple[str, ...] = ()
    metadata: Mapping[str, str] | None = None
    keys: tuple[str, ...] = ()
    model: str = ""
    shift: float | None = None
    sigmas: tuple[float, ...] = ()
    strength: float | None = None
    cfg: float | None = None
    note: str = ""
    source: str = ""

    def fits(self, names: Collection[str], metadata: Mapping[str, str], keys: Collection[str], models: Models) -> bool:
        """models: gives the backbones that have the file's modules."""
        named = [words(name) for name in names]
        return (
            (not self.names or any(fnmatchcase(name, words(wanted)) for name in named for wanted in self.names))
            and all(fnmatchcase(metadata.get(key, "")[:LONGEST], wanted) for key, wanted in (self.metadata or {}).items())
            and all(any(fnmatchcase(key, wanted) for key in keys) for wanted in self.keys)
            and (not self.model or self.model in models())
        )

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.steps, "multi", start_gap=0.0, end_gap=0.0, sigmas=self.sigmas or shifted(self.steps, self.shift))

    def advice(self) -> str:
        """One line."""
        schedule = f"shift {self.shift:g}" if not self.sigmas else f"sigmas {', '.join(f'{s:.4g}' for s in self.sigmas)}"
        some = {"strength": self.strength, "cfg": self.cfg}
        told = [f"{name} {value:g}" for name, value in some.items() if value is not None]
        return ", ".join([f"{self.steps} {'step' if self.steps == 1 else 'steps'}", schedule, *told])

    def verdict(self) -> str:
        return f"known as {self.title}, recommended: {self.advice()}"

    def details(self) -> list[str]:
        sigmas = ", ".join(f"{s:.4g}" for s in self.sampling.sigmas)
        lines = [
            self.verdict(),
            f"  sigmas, for a sampler of your own (euler): {sigmas}",
        ]
        return lines + [f"  {name}: {text}" for name, text in (("note", self.note), ("source", self.source)) if text]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e9 < value < 1e9


def is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST and value.isprintable()


def are_wildcards(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_text(text) and re.search(r"\w", text) for text in value)


def between(low: float, high: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: is_number(value) and low <= value <= high, f"a number from {low:g} to {high:g}"


def are_sigmas(value: Any) -> bool:
    if not isinstance(value, list) or len(value) < 2 or not all(map(is_number, value)):
        return False
    return value[0] <= 1 and value[-1] == 0 and all(a > b for a, b in pairwise(value))


MODELS = sorted(record.name for record in all_backbones().values() if record.modules and not record.variant)
TEXT = is_text, f"printable text of {LONGEST} characters at most"
WILDCARDS = are_wildcards, 'a list of wildcards, such as ["my-lora-4steps*"]'
FORM: dict[str, tuple[Callable[[Any], bool], str]] = {  # of an entry: what each of its values must be
    "title": TEXT,
    "names": WILDCARDS,
    "metadata": (
        lambda v: isinstance(v, dict) and bool(v) and are_wildcards([*v.values()]) and all(map(is_text, v)),
        'wildcards by name, such as {"ss_output_name": "my-lora*"}',
    ),
    "keys": WILDCARDS,
    "model": (lambda v: v in MODELS, f"one of {', '.join(MODELS)}"),
    "steps": (lambda v: isinstance(v, int) and v is not True and 1 <= v <= 100, "a whole number from 1 to 100"),
    "shift": between(0.01, 100),
    "sigmas": (are_sigmas, "numbers that fall from 1 or less to 0"),
    "strength": between(-10, 10),
    "cfg": between(0, 100),
    "note": TEXT,
    "source": TEXT,
}


class Recognised(NamedTuple):
    """known: what is known of a file, None for all others.  fault: of the user's own list, in a line."""

    known: KnownFile | None
    fault: str = ""


def recognise(path: str | Path, metadata: Mapping[str, str], keys: Collection[str]) -> Recognised:
    """keys: of its LoRA, as the file has them."""
    path, fault, own = Path(path), "", []
    try:
        own = read(path.with_name(THEIRS)) if path.with_name(THEIRS).is_file() else []
    except (ValueError, OSError) as error:
        what = " ".join(str(error).split())
        fault = f"{path.with_name(THEIRS)}: is not used: {what[:300]}. Correct it, or take it away"
    names = [path.stem, *(metadata[name][:LONGEST] for name in TITLES if name in metadata)]
    models = cache(lambda: {record.name for record in of_modules(keys)})
    return Recognised(next((known for known in [*own, *ours()] if known.fits(names, metadata, keys, models)), None), fault)


@cache
def ours() -> list[KnownFile]:
    return read(OURS)


def read(path: Path) -> list[KnownFile]:
    """Raises ValueError, in one line, or OSError."""
    if path.stat().st_size > MOST:
        raise ValueError(f"it has {path.stat().st_size} bytes; expected {MOST} at most")
    entries = loads(path.read_text("utf-8"))
    if not isinstance(entries, list):
        raise ValueError('expected a list, [{"title": "...", "names": ["..."], "steps": 4, "shift": 3}]')
    return [checked(entry, f"entry {i}") for i, entry in enumerate(entries, 1)]


def checked(entry: Any, where: str) -> KnownFile:
    """Raises ValueError, naming the value and what was expected."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is no object; expected one with any of {', '.join(FORM)}")
    for name, value in entry.items():
        if name not in FORM:
            raise ValueError(f"{where} has {name[:LONGEST]!r}; expected any of {', '.join(FORM)}")
        fine, expected = FORM[name]
        if not fine(value):
            raise ValueError(f"{where}: {name} is {repr(value)[:LONGEST]}; expected {expected}")
    if not {"title", "steps"} <= entry.keys() or ("shift" in entry) == ("sigmas" in entry):
        raise ValueError(f"{where}: expected a title, steps, and one of shift and sigmas")
    if not {"names", "metadata", "keys"} & entry.keys():
        raise ValueError(f"{where}: expected any of names, metadata and keys, to know the file by")
    if "sigmas" in entry and len(entry["sigmas"]) != entry["steps"] + 1:
        raise ValueError(f"{where} has {len(entry['sigmas'])} sigmas; expected {entry['steps'] + 1} for {entry['steps']} steps")
    values: dict[str, Any] = entry | {name: tuple(entry[name]) for name in ("names", "keys", "sigmas") if name in entry}
    return KnownFile(**values)


def words(name: str) -> str:
    """Words and numbers, each with a space behind it: "My_LoRA-4steps" and "my lora 4 step" are the same.  * stays."""
    found = re.findall(r"[^\W\d_]+|\d+|\*", name.lower())
    return "".join(word if word == "*" else f"{'step' if word == 'steps' else word} " for word in found)


def shifted(steps: int, shift: float | None) -> tuple[float, ...]:
    """Evenly spaced times, each t moved to s t / (1 + (s - 1) t)."""
    s = shift or 1.0
    return tuple(s * t / (1 + (s - 1) * t) for t in (1 - i / steps for i in range(steps + 1)))
