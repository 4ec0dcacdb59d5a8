"""A data set in a file (TOML or YAML): a table for each folder, and what is said beside the tables holds for all of them.

    caption_dropout = 0.1

    [[datasets]]
    path = "photos"                # relative to this file
    repeats = 3
    resolution = [512, 1024]       # every image at both

Tables may lie in tables (kohya's subsets), and names may be those of other trainers.
"""

import difflib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .. import TrainerError, hints, plain_yaml
from .sources import MOST, Source

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLES = ("datasets", "dataset", "folders", "folder", "directories", "directory", "subsets", "data")
GENERAL = ("general", "defaults")  # a table of what holds for all
CALLED = {  # another trainer's name -> ours
    "image_dir": "path", "image_directory": "path", "image_jsonl_file": "path", "folder_path": "path", "metadata_file": "path",
    "num_repeats": "repeats", "resolutions": "resolution",
    "default_caption": "caption", "class_tokens": "caption",
    "trigger_word": "trigger", "caption_prefix": "trigger", "prefix": "trigger",
    "dropout": "caption_dropout", "caption_dropout_rate": "caption_dropout",
    "keep_tokens": "keep_tags",
}  # fmt: skip


def read(path: Path, defaults: Source) -> list[Source]:
    """Its sources, in its order; defaults: of what no table says.  Raises TrainerError."""
    try:
        found = list(_tables(_loaded(path) or {}, {}, path, "", defaults))
    except RecursionError:
        raise TrainerError(f"data: {path}: a table holds itself; expected a path in each") from None
    if not found:
        raise TrainerError(f"data: {path}: names no data; expected a table such as [[datasets]] with a path")
    return found


def _loaded(path: Path) -> Any:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return tomllib.loads(text) if path.suffix.lower() == ".toml" else plain_yaml.loads(text)
    except OSError as error:
        raise TrainerError(f"data: {path}: cannot be read ({error.strerror or error}); expected a TOML or YAML file") from None
    except (ValueError, yaml.YAMLError, OverflowError, RecursionError) as error:  # tomllib's and Unicode's are ValueErrors
        raise TrainerError(f"data: {path}: is not TOML or YAML in UTF-8 ({hints.fault(error)})") from None


def _tables(table: Any, above: Mapping[str, Any], path: Path, where: str, defaults: Source) -> Iterator[Source]:
    """Of a table that holds others, those; of one that holds none, itself."""
    if isinstance(table, list):
        table = {TABLES[0]: table}
    if not isinstance(table, dict):
        raise TrainerError(f"data: {path}: {where or 'it'} is {short(table)}; expected a table with a path")
    table = {str(key).replace("-", "_").lower(): value for key, value in table.items()}
    general = [table[key] for key in GENERAL if isinstance(table.get(key), dict)]
    inner = [key for key in TABLES if isinstance(table.get(key), (list, dict))]
    values = dict(above)
    for own in (*general, {k: v for k, v in table.items() if k not in inner and not (k in GENERAL and general)}):
        values |= {_known(str(key), path, where): value for key, value in own.items()}
    if not inner and "path" in values:
        yield _source(values, path, where, defaults)
    elif "path" in values or (where and not inner):
        raise TrainerError(f"data: {path}: {where or 'it'} has {'tables beside' if inner else 'no'} path; expected one")
    for key in inner:
        rows = table[key] if isinstance(table[key], list) else [table[key]]
        for number, row in enumerate(rows, 1):
            yield from _tables(row, values, path, f"{where} {key} {number}".strip(), defaults)


def _known(key: str, path: Path, where: str) -> str:
    name = key.replace("-", "_").lower()
    name = CALLED.get(name, name)
    if name == "path" or name in KEYS:
        return name
    near = difflib.get_close_matches(name, [*KEYS, *CALLED], 1, 0.7)
    known = f"did you mean {CALLED.get(near[0], near[0])}?" if near else f"expected path, {', '.join(KEYS)}"
    raise TrainerError(f"data: {path}: {key} is unknown{f' ({where})' if where else ''}; {known}")


def _source(values: Mapping[str, Any], path: Path, where: str, defaults: Source) -> Source:
    own = values["path"]
    if hints.escaped(own):
        raise _wrong(path, where, "path", own, f"one without control characters ({hints.ESCAPED})")
    if not isinstance(own, str) or not own or "\0" in own:
        raise _wrong(path, where, "path", own, "a folder, a table or a .txt file of prompts")
    place = path.parent / os.path.expanduser(own)
    if "\\" in own and not place.exists():  # as Windows wrote it
        place = path.parent / own.replace("\\", "/")
    source = defaults._replace(path=place)
    for key, value in values.items():
        if key == "path":
            continue
        field, usable, expected = KEYS[key]
        value = [value] if key == "resolution" and not isinstance(value, list) else value
        if not usable(value):
            raise _wrong(path, where, key, values[key], expected)
        made = {"lines": lambda v: v == "lines", "resolutions": lambda v: tuple(dict.fromkeys(v))}.get(field, lambda v: v)
        source = source._replace(**{field: made(value)})
    return source


def _wrong(path: Path, where: str, key: str, value: Any, expected: str) -> TrainerError:
    return TrainerError(f"data: {path}: {key} is {short(value)}{f' ({where})' if where else ''}; expected {expected}")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def text(value: Any) -> bool:
    return isinstance(value, str)


KEYS: dict[str, tuple[str, Callable[[Any], bool], str]] = {  # key -> field of Source, what is usable, in words
    "repeats": ("repeats", whole(0, MOST), "a whole number from 0 on"),
    "resolution": (
        "resolutions", lambda value: bool(value) and all(map(whole(32, 2**31), value)),
        "pixels such as 1024, or several such as [512, 1024]",
    ),
    "caption": ("caption", text, "the caption of images that have none"),
    "captions": ("lines", lambda value: value in ("whole", "lines"), "whole or lines"),
    "trigger": ("trigger", text, "words to be put before each caption"),
    "shuffle_tags": ("orders", whole(1, 1000), "the number of orders of a caption's tags, such as 8"),
    "keep_tags": ("keep", whole(0, 1000), "the number of tags that stay at the front"),
    "caption_dropout": (
        "dropout", lambda value: type(value) in (int, float) and 0 <= value <= 1, "a share between 0 and 1",
    ),
}  # fmt: skip
