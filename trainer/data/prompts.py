"""What to draw while training: prompts, each with the size, seed, steps and guidance that it is to have.

A text file has a prompt a line, with options at its end as kohya's sd-scripts and musubi-tuner write them; lines that begin
with # are remarks:

    a cat, at night --w 1024 --h 768 --d 42 --s 4

Tables (.csv, .tsv, .jsonl, .json, .toml, .yaml) have the same under the names of FIELDS, and so has a list in a settings file.
"""

import csv
import math
import re
import sys
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from twinflow.plain_json import loads

from .. import TrainerError, hints, plain_yaml
from . import rows, sources, tables, texts
from .report import Report
from .row import ImageFile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".toml", ".yaml", ".yml")
KINDS = (".txt", *TABLES)
FIELDS: dict[str, tuple[str, ...]] = {  # ours -> other names of it, the short ones behind -- in a text file
    "prompt": tables.CAPTION,
    "width": ("w",),
    "height": ("h",),
    "seed": ("d",),
    "steps": ("s", "sample_steps", "num_inference_steps", "nfe"),
    "guidance": ("l", "g", "guidance_scale", "cfg_scale", "cfg", "scale"),
    "reference": ("i", "ci", "references", "reference_image", "ctrl_img", *tables.REFERENCE),
}
BEHIND = "--w, --h, --d (seed), --s (steps), --l (guidance) or --i (an image to edit)"
UNREAD = {  # known of other trainers, and named where they stand: nothing here could follow them
    "n", "negative_prompt", "negative", "fs", "flow_shift", "discrete_flow_shift", "f", "frame_count", "ss", "sample_sampler",
    "am", "m", "cn", "ctr", "controlnet_image", "enum", "rcfg", "of", "ei", "cv", "fps", "network_multiplier",
}  # fmt: skip
HOLD = ("prompts", "prompt", "samples", "subset")  # names of a list of prompts in a table
STEPS, SIDE, GUIDANCE = 200, 8192, 100.0  # more is a slip


class Prompt(NamedTuple):
    """name: where it stands.  size: (height, width), of which either may be None.  steps: network evaluations, none: the
    usual.  references: images to edit."""

    name: str
    text: str
    size: tuple[int | None, int | None] = (None, None)
    seed: int | None = None
    steps: tuple[int, ...] = ()
    guidance: float | None = None
    references: tuple[ImageFile, ...] = ()


def read(source: str, report: Report, *, edit: bool, multiple: int) -> list[Prompt]:
    """The prompts of a file, of several by comma, of anything that is data, or of a JSON list (as a settings file has it).

    multiple: what both sides must be multiples of.  Raises TrainerError, whatever is wrong: nothing has been loaded yet.
    """
    found = [prompt for prompt in _all(source, report, edit)]
    for prompt in found:
        checked(prompt, edit=edit, multiple=multiple)
    if not found:
        raise TrainerError(f"--prompts {source}: holds no prompt; expected one a line, or a table with a column prompt")
    return found


def checked(prompt: Prompt, *, edit: bool, multiple: int) -> Prompt:
    """Raises TrainerError for what this model cannot draw."""
    for side, value in zip(("height", "width"), prompt.size):
        if value is not None and value % multiple:
            near = max(multiple, round(value / multiple) * multiple)
            raise TrainerError(f"{prompt.name}: {side} is {value}; expected a multiple of {multiple}, such as {near}")
    if prompt.references and not edit:
        raise TrainerError(f"{prompt.name}: has an image to edit; expected none, since this model does not edit")
    if edit and not prompt.references:
        raise TrainerError(f"{prompt.name}: has no image to edit; expected one, as reference in a table or --i in a text file")
    return prompt


def _all(source: str, report: Report, edit: bool) -> Iterator[Prompt]:
    if source.lstrip().startswith("["):
        yield from listed("--prompts", _json(source, "--prompts"), Path(), report)
        return
    for place in sources.listed(source, sources.Source()):
        path, kind = place.path, place.path.suffix.lower()
        if path.is_file() and kind in KINDS:
            yield from of_file(path, report)
        elif path.exists():  # a folder of images, or parquet: the first caption of each
            found = rows.of(place._replace(repeats=1), report, edit=edit, image_free=True)
            yield from (Prompt(row.name, row.captions[0], references=row.references if edit else ()) for row in found)
        else:
            raise TrainerError(
                f"--prompts {source}: {path} does not exist; expected a file of prompts ({', '.join(KINDS)}), one a line"
            )


def of_file(path: Path, report: Report) -> Iterator[Prompt]:
    """Raises TrainerError."""
    kind = path.suffix.lower()
    try:
        text = texts.read(path)
    except UnicodeDecodeError:
        raise TrainerError(f"{path}: is not UTF-8; expected prompts saved as UTF-8") from None
    except OSError as error:
        raise TrainerError(f"{path}: cannot be read ({error.strerror or error})") from None
    if kind == ".txt":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip(texts.BLANKS) and not line.startswith("#"):
                yield of_line(f"{path}:{number}", line, path.parent, report)
    elif kind in (".csv", ".tsv"):
        head = text.partition("\n")[0]
        mark = "\t" if kind == ".tsv" else ";" if ";" in head and "," not in head else ","
        reader = csv.DictReader(StringIO(text, newline=""), delimiter=mark)
        try:
            for row in reader:
                if None in row:
                    raise TrainerError(
                        f"{path}:{reader.line_num}: has more cells than the header; expected quotes round a text with commas"
                    )
                yield of_fields(f"{path}:{reader.line_num}", row, path.parent, report)
        except csv.Error as error:
            raise TrainerError(f"{path}: is not a table ({error}); expected a header line, then a prompt a line") from None
    elif kind == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield of_value(f"{path}:{number}", _json(line, f"{path}:{number}"), {}, path.parent, report)
    else:
        yield from listed(str(path), _parsed(text, kind, path), path.parent, report)


def _parsed(text: str, kind: str, path: Path) -> Any:
    try:
        if kind == ".json":
            return _json(text, str(path))
        if kind == ".toml":
            return tomllib.loads(text)
        return plain_yaml.loads(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TrainerError(f"{path}: cannot be read ({hints.fault(error)})") from None


def _json(text: str, name: str) -> Any:
    try:
        return loads(text)
    except ValueError as error:
        raise TrainerError(f"{name}: is not JSON ({error}); expected prompts as texts or objects") from None


def listed(name: str, value: Any, folder: Path, report: Report) -> Iterator[Prompt]:
    """A list of texts or tables; or a table that holds one (see HOLD), with values for all beside it."""
    common: dict[str, Any] = {}
    while isinstance(value, dict):
        key = next((key for key in HOLD if isinstance(value.get(key), (list, dict))), None)
        if key is None:
            value = [value]
            break
        common |= {other: own for other, own in value.items() if other != key}
        value = value[key]
    if not isinstance(value, list):
        raise TrainerError(f"{name}: holds {type(value).__name__}; expected a list of prompts")
    for number, item in enumerate(value, 1):
        yield of_value(f"{name}:{number}", item, common, folder, report)


def of_value(name: str, value: Any, common: Mapping[str, Any], folder: Path, report: Report) -> Prompt:
    own = values_of(name, value) if isinstance(value, str) else value
    if not isinstance(own, dict):
        raise TrainerError(f"{name}: is {shown(value)}; expected a text, or a table with prompt, width, height, seed, steps")
    return of_fields(name, own | {key: other for key, other in common.items() if key not in own}, folder, report)


def of_line(name: str, line: str, folder: Path, report: Report) -> Prompt:
    """A prompt with its options behind it.  Raises TrainerError."""
    return of_fields(name, values_of(name, line), folder, report)


def values_of(name: str, line: str) -> dict[str, Any]:
    text, *options = re.split(r"(?:^|\s)--(?=[A-Za-z])", line)
    values: dict[str, Any] = {}
    for part in options:
        option, _, value = re.sub(r"^(\w+)(?:=|\s+|$)", r"\1 ", part).partition(" ")
        key = option.lower()
        if key not in UNREAD and ours(key) is None:
            raise TrainerError(
                f"{name}: --{option} is not an option of a prompt; expected {BEHIND}, or the text without the two dashes"
            )
        if not value.strip():
            raise TrainerError(f"{name}: --{option} has no value; expected one behind it")
        values[key] = value.strip()
    return {"prompt": text.strip(texts.BLANKS), **values}


def ours(name: str) -> str | None:
    """Our name of a field; a number may be behind that of a reference."""
    name = name.strip().lower().replace("-", "_").replace(" ", "_")
    for field, others in FIELDS.items():
        if name == field or name in others:
            return field
    return "reference" if re.sub(r"_?\d+$", "", name) in FIELDS["reference"] else None


def of_fields(name: str, values: Mapping[str, Any], folder: Path, report: Report) -> Prompt:
    """A prompt of named values; of two for one field the first counts, and empty ones do not.  Raises TrainerError."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        field = ours(str(key))
        if value in (None, "", []):
            continue
        if field is None:
            if str(key).strip().lower() not in tables.TARGET:  # the picture of a row of training data is no matter here
                report.note(f"option {key!r}, which nothing here reads", name)
        elif field == "reference":
            found[field] = [*found.get(field, []), *(value if isinstance(value, list) else [value])]
        else:
            found.setdefault(field, value)
    text = found.get("prompt")
    text = text[0] if isinstance(text, list) and text else text
    if not isinstance(text, str) or not text.strip(texts.BLANKS):
        raise TrainerError(f"{name}: {'has no prompt' if text is None else f'prompt is {shown(text)}'}; expected a text")
    files = found.get("reference", [])
    if wrong := [file for file in files if not isinstance(file, str) or not (folder / file).is_file()]:
        raise TrainerError(f"{name}: reference {shown(wrong[0])} is not there; expected an image, relative to {folder}")
    steps = found.get("steps", [])
    steps = re.split(r"[,\s]+", steps.strip()) if isinstance(steps, str) else steps if isinstance(steps, list) else [steps]
    whole = lambda field, least, most: number(name, field, found[field], least, most) if field in found else None
    return Prompt(
        name, text.strip(texts.BLANKS), (whole("height", 1, SIDE), whole("width", 1, SIDE)), whole("seed", 0, 2**63 - 1),
        tuple(sorted({number(name, "steps", n, 1, STEPS) for n in steps})), scale(name, found.get("guidance")),
        tuple(ImageFile(folder / file) for file in files),
    )  # fmt: skip


def number(name: str, field: str, value: Any, least: int, most: int) -> int:
    text = str(value).strip() if not isinstance(value, bool) else ""
    whole = int(text.removesuffix(".0")) if re.fullmatch(r"[0-9]{1,20}(\.0)?", text) else -1
    if not least <= whole <= most:
        raise TrainerError(f"{name}: {field} is {shown(value)}; expected a whole number from {least} to {most}")
    return whole


def scale(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        made = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        made = math.nan
    if not 0 <= made <= GUIDANCE:
        raise TrainerError(f"{name}: guidance is {shown(value)}; expected a number from 0 to {GUIDANCE:g}")
    return made


def shown(value: Any) -> str:
    """A value in an error, short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
